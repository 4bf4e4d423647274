"""What an answer says of the worker that gave it, whoever had it: this router, or a client that brought its request."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Tier

from sparsity_router.fleet.proof import fault, is_less
from sparsity_router.fleet.workers import Worker


def judge(worker: Worker, tier: Tier, completion: inference_pb2.Completion) -> bool:
    """Whether an answer at ``tier`` is believed; a worker whose is not is taken out of use."""
    problem = fault(completion, tier, must_report=worker.must_report(tier))
    if problem:
        # An engine that mixes tiers up is believed at none; one that is silent, not at this one.
        worker.distrust(problem, worker.tiers if is_less(completion, tier) else {tier})
    return not problem


class DirectAnswers:
    """Answers of direct streams, by the word of the workers that gave them: a client's would harm others where it lies.

    Attributes:
        settle: told of the digest of each request's decision, and of the tokens that its worker worked on.
    """

    def __init__(self) -> None:
        self.settle: Callable[[bytes, int], None] = lambda digest, tokens: None

    def heard(self, worker: Worker, ended: Iterable[worker_pb2.EndedLease]) -> None:
        """Adopts what a worker tells of them; it may tell one again where its load stream broke off."""
        for one in ended:
            if one.HasField("completion") and int(one.tier) in list(Tier):
                judge(worker, Tier(one.tier), one.completion)
            self.settle(one.decision_digest, one.tokens)
