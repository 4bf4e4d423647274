"""Decides a request: what its session got before, what it is, and what policy makes of that."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sparsity.v1 import inference_pb2
from sparsity_policies.model import Signals
from sparsity_policies.risk.weighing import Weighed
from sparsity_rpc import tracing

from sparsity_router.decisions.review import Review, read_by_now
from sparsity_router.decisions.sessions import Session, Sessions
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.measure import EncodedPrompt
from sparsity_router.prompts.signals import Arrival

_tracer = tracing.tracer("sparsity.router")


@dataclass(frozen=True, slots=True)
class Decided:
    """A decided request.

    Attributes:
        decision_id: which no other request has; empty for one that is only explained.
        signals: what it was decided from.
        prompt: for the worker.
        review: the decision as of now.
        risk: what its text is like.
        words: its text.
        seconds: that classification and decision took.
    """

    decision_id: str
    signals: Signals
    prompt: EncodedPrompt
    review: Review
    risk: Weighed
    words: str
    seconds: float


class Decider:
    """Decisions of one router.

    Args:
        follower: of the policies to decide from.
        sessions: keeps conversations at their tier; None lets them move freely.
    """

    def __init__(self, follower: PolicyFollower, sessions: Sessions | None = None) -> None:
        self._follower = follower
        self._sessions = sessions

    async def decide(
        self, request: inference_pb2.GenerateRequest, classifier: Classifier, decision_id: str, *, exact: bool = False
    ) -> Decided:
        """Classifies and decides; a session is told of it, and of each review, where the decision has an id.

        Args:
            request: as the caller sent it.
            classifier: of its model, which finds out what it is.
            decision_id: of the decision to be.
            exact: whether to count the tokens even where the decision does not hang on them.

        Raises:
            InvalidRequestError: naming the field.
        """
        follower, started = self._follower, time.monotonic()
        session = Session(self._sessions, request.context.tenant, request.context.session)
        before = await session.tier()
        with tracing.span(_tracer, "router.classify"):
            named = classifier.served.name
            arrival = Arrival(follower.now(), follower.age, decision_id, before.tier, before.problem, named)
            classified = await classifier.classify(request, follower.snapshot, arrival, exact=exact)
            # A change that came while a long prompt was read counts: a kill switch must not wait for it.
            classified = await read_by_now(follower, classified)
        with tracing.span(_tracer, "router.decide"):
            told = (session.served,) if decision_id else ()
            review = Review(follower, classified, session.held, *told)
        seconds = time.monotonic() - started
        resolved = classified.resolved
        words = resolved.scanned.opened.words
        return Decided(decision_id, classified.signals, classified.prompt, review, resolved.risk, words, seconds)
