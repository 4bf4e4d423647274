"""What the sentence model was asked by exemplars of then, held against policies of now."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import Policy, Reason, Tier
from sparsity_router.decisions.review import Review, read_by_now
from sparsity_router.prompts.classify import Classified, Classifier
from sparsity_router.prompts.domains import Score
from sparsity_router.prompts.tokens import ModelTokenizer
from support.stores.snapshots import snapshot
from support.tiny import tiny_model


class ByExemplars:
    """A detector to which a prompt is like each domain that has exemplars."""

    async def detect(self, text: str, at: Snapshot) -> dict[str, Score]:
        known = {domain for domain, item in at.policies.items() if item.policy.detection.exemplars}
        return dict.fromkeys(known, Score(0.9, 0.9))


def policy(domain: str, risk: str = "low", **detection: Any) -> Policy:
    # No linear model reads these, so that the sentence model's answer is all there is.
    bands = [{"from_tokens": 0, "tier": "dense" if risk == "high" else "aggressive"}]
    return parse_policy({"domain": domain, "risk": risk, "bands": bands, "detection": {"mode": "off", **detection}})


CHAT = policy("chat", exemplars=["hello, how are you?"])
CLINIC = policy("clinic", "high", exemplars=["the patient was admitted"])
FORUM = policy("forum", literals=["hello"])


async def classified(folder: Path, *policies: Policy, domain: str | None = None, asks: bool = True) -> Classified:
    detector: Any = ByExemplars() if asks else None
    classifier = Classifier(ModelTokenizer(tiny_model(folder)), 10_000, detector, doubts_declared=True)
    return await classifier.classify(make_request("hello", domain=domain), snapshot(policies))


CHANGES = {
    "a riskier domain is taught": (None, (CHAT,), (CHAT, CLINIC)),
    "exemplars are others": (None, (CHAT,), (policy("chat", exemplars=["good morning to you"]),)),
    "a declared domain's too": ("forum", (FORUM, CHAT), (FORUM, CHAT, CLINIC)),
    "what the scan was certain of is gone": (None, (FORUM, CHAT), (CHAT, CLINIC)),
    "a declared domain has a policy by now": ("late", (CHAT,), (policy("late"), CHAT)),
    "a declared domain is a risk no more": ("late", (policy("late", "high"), CHAT), (policy("late"), CHAT)),
}


@pytest.mark.parametrize(("domain", "before", "after"), CHANGES.values(), ids=CHANGES)
async def test_what_was_not_asked_by_the_exemplars_of_now_is_a_doubt(
    tmp_path: Path, domain: str | None, before: tuple[Policy, ...], after: tuple[Policy, ...]
) -> None:
    known, now = await classified(tmp_path, *before, domain=domain), snapshot(after)
    found = decide(known.under(now), now)
    assert (found.tier, found.reason) == (Tier.DENSE, Reason.CLASSIFIER_FAILED)


UNDOUBTED = {
    "the same exemplars": (None, (CHAT,), (policy("chat", "elevated", exemplars=["hello, how are you?"]),)),
    "another domain without any": (None, (CHAT,), (CHAT, policy("forum"))),
    "no exemplars any more": (None, (FORUM, CHAT), (FORUM,)),
    "nobody to ask": ("forum", (policy("forum", "high"),), (policy("forum"),)),
    "the scan is certain": (None, (FORUM, CHAT), (FORUM, CHAT, CLINIC)),
}


@pytest.mark.parametrize(("domain", "before", "after"), UNDOUBTED.values(), ids=UNDOUBTED)
async def test_an_answer_that_would_be_the_same_stands(
    tmp_path: Path, domain: str | None, before: tuple[Policy, ...], after: tuple[Policy, ...]
) -> None:
    known, now = await classified(tmp_path, *before, domain=domain), snapshot(after)
    assert decide(known.under(now), now).tier is Tier.AGGRESSIVE


async def test_a_router_that_asks_nobody_has_no_answer_to_doubt(tmp_path: Path) -> None:
    known, now = await classified(tmp_path, CHAT, domain="chat", asks=False), snapshot([CHAT, CLINIC])
    assert decide(known.under(now), now).tier is Tier.AGGRESSIVE


async def test_reviews_and_first_decisions_see_it(tmp_path: Path) -> None:
    known = await classified(tmp_path, CHAT)
    follower: Any = SimpleNamespace(snapshot=known.resolved.snapshot, age=0.0, now=lambda: 0.0)
    review = Review(follower, known)
    assert review().tier is Tier.AGGRESSIVE
    follower.snapshot = snapshot([CHAT, CLINIC])
    assert (review().tier, review().reason) == (Tier.DENSE, Reason.CLASSIFIER_FAILED)
    assert Review(follower, await read_by_now(follower, known)).decision.reason is Reason.CLASSIFIER_FAILED
