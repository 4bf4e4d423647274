"""A second opinion on what the linear model finds likely: what is read, what its word does, and what no answer does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import DetectionMode, Policy, Reason, Tier
from sparsity_policies.risk.corpus import RISKY
from sparsity_policies.risk.likely import REACH
from sparsity_policies.risk.model import Closer
from sparsity_policies.risk.opinion import LEAST, MOST, Opinions, closer, opined
from sparsity_policies.risk.weighing import acting
from sparsity_router.config import RouterConfig
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.opinion.asking import NoOpinionError, SecondOpinion
from sparsity_router.prompts.opinion.encoder import MOST_TOKENS, Encoder
from sparsity_router.prompts.opinion.model_file import FILE, ModelFile, fetched, present
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import ConfigurationError
from support.routers.router import running, until
from support.stores.snapshots import compiled, snapshot, stored
from support.stores.valkey import Valkey
from support.tiny import tiny_model

POLICIES = acting(shipped_policies("small-context"))
ACTING = snapshot(POLICIES)
MODEL = ACTING.risk.model
EVERYTHING = Closer(RISKY, MOST, LEAST)
SICK = "My father takes warfarin, his INR was 7.8 this morning and he has been bleeding from the gums all night."
NEAR = "In chapter nine the old doctor of the village is called to the castle, where the prince has a fever."
PLAIN = "The bakery opens at seven. On Saturdays there is rye bread, and the queue goes round the corner."
# Within what the test's model reads.
SHORT = f"{PLAIN}\n\n{SICK}"


def prompt(*parts: str) -> str:
    """Too long to be a window as a whole."""
    return "\n\n".join([*[PLAIN] * 4, *parts, *[PLAIN] * 4])


def every(value: float, texts: Sequence[str]) -> Opinions:
    return {text: [value] * len(RISKY) for text in texts}


class Says:
    """One who says the same of everything, and remembers what it was asked."""

    def __init__(self, value: float | None) -> None:
        self.value = value
        self.asked: list[str] = []

    async def read(self, texts: Sequence[str]) -> Opinions:
        self.asked += texts
        if self.value is None:
            raise NoOpinionError("the second opinion ran out of time (1 s)")
        return every(self.value, texts)


def classifier(folder: Path, second: Any) -> Classifier:
    return Classifier(ModelTokenizer(tiny_model(folder)), 1_000_000, second=second)


# What is read.


def test_a_likely_window_is_read_with_its_paragraph_and_no_other() -> None:
    likely = MODEL.scores(prompt(SICK), RISKY, EVERYTHING).likely
    assert likely[0].text == SICK
    text = prompt(SICK)
    assert text[likely[0].start : likely[0].end] == SICK
    assert all("\n\n" not in part.text for part in likely)


def test_what_repeats_is_read_once_and_the_most_likely_first() -> None:
    scores = MODEL.scores(prompt(*[SICK] * 50, NEAR), RISKY, EVERYTHING)
    texts = [part.text for part in scores.likely]
    assert texts[0] == SICK
    assert len(set(texts)) == len(texts)
    # None of its fifty places is left to the linear model alone.
    assert scores.left["medical"].probability < scores.peaks["medical"].probability / 10


def test_so_many_parts_are_read_and_no_longer_ones() -> None:
    risks = [f"Patient {number}: {SICK} Dose {number} mg." for number in range(40)]
    scores = MODEL.scores(prompt(*risks), RISKY, EVERYTHING)
    assert len(scores.likely) == MOST
    # What there was no place for is as likely as the linear model has it.
    assert scores.left["medical"].probability > 0.5
    long = MODEL.scores(prompt(" ".join(risks)), RISKY, EVERYTHING)
    assert long.likely
    assert all(len(part.text) <= REACH for part in long.likely)


@pytest.mark.parametrize("text", ["", "x", " \n\n\t", "?!", "half \ud800 pair " + SICK, SICK * 20_000, "\n\n" * 90_000])
def test_odd_texts_have_few_parts(text: str) -> None:
    likely = MODEL.scores(text, RISKY, EVERYTHING).likely
    assert len(likely) <= MOST
    assert all(0 <= part.start < part.end and part.text for part in likely)


def test_letters_keep_their_case_where_they_keep_their_places() -> None:
    for odd in ("ﬁve", "½", "e\u0301"):
        likely = MODEL.scores(prompt(f"{odd} {SICK}"), RISKY, EVERYTHING).likely
        assert SICK in likely[0].text


def test_without_anybody_to_ask_nothing_is_chosen() -> None:
    scores = MODEL.scores(prompt(SICK), RISKY)
    assert (scores.likely, scores.left) == ((), {})
    assert scores.peaks == MODEL.scores(prompt(SICK), RISKY, EVERYTHING).peaks


# What its word does.


def test_an_opinion_confirms_or_withdraws() -> None:
    scores = MODEL.scores(prompt(SICK), RISKY, EVERYTHING)
    texts = [part.text for part in scores.likely]
    sure, not_at_all = opined(scores, every(9.0, texts)), opined(scores, every(-9.0, texts))
    assert not_at_all.peaks["medical"].probability < scores.peaks["medical"].probability
    assert sure.peaks["medical"].probability > not_at_all.peaks["medical"].probability
    told = sure.peaks["medical"]
    assert told.first == pytest.approx(scores.peaks["medical"].probability)
    assert told.second == pytest.approx(1 / (1 + np.exp(-9.0)))


def test_what_was_not_read_stays_as_the_linear_model_has_it() -> None:
    scores = MODEL.scores(prompt(SICK, f"{SICK} Again!"), RISKY, EVERYTHING)
    assert opined(scores, {}) == scores
    first, second = scores.likely[:2]
    held = opined(scores, every(-9.0, [first.text])).peaks["medical"]
    assert (held.start, held.first, held.second) == (second.start, None, None)


def test_nobody_is_asked_about_domains_that_the_net_does_not_know() -> None:
    assert closer({"code", "plant"}, ()) is None
    assert closer({"medical"}, {"medical"}) is None
    found = closer({"medical", "legal", "code"}, {"legal"})
    assert found is not None
    assert list(found.domains) == ["medical"]


def test_domains_with_exemplars_of_their_own_are_left_to_what_has_learnt_them() -> None:
    taught = [
        replace(policy, detection=replace(policy.detection, exemplars=(SICK, NEAR)))
        if policy.domain == "medical"
        else policy
        for policy in POLICIES
    ]
    # What is learnt of them is another test's business.
    learnt = Snapshot.build(1, map(stored, taught), compiled=compiled, learnt=lambda *_: MODEL.heads)
    assert learnt.risk.taught == {"medical"}
    assert ACTING.risk.taught == frozenset()


async def test_a_request_is_decided_by_both(tmp_path: Path) -> None:
    request = make_request(SHORT, domain="rag")
    for value, domain in ((9.0, "medical"), (-9.0, "rag")):
        second = Says(value)
        classified = await classifier(tmp_path, second).classify(request, ACTING)
        assert SICK in second.asked
        assert classified.signals.domain == domain
        # Another snapshot asks nobody anew, and has what was said.
        asked = len(second.asked)
        assert classified.by(snapshot(POLICIES)).signals.domain == domain
        assert len(second.asked) == asked


async def test_nobody_is_asked_about_what_is_not_likely(tmp_path: Path) -> None:
    second = Says(9.0)
    for text, domain in ((PLAIN, "rag"), (SICK, "medical")):
        classified = await classifier(tmp_path, second).classify(make_request(text, domain=domain), ACTING)
        assert classified.signals.classifier_error == ""
    assert second.asked == []


# What no answer does.


@pytest.mark.parametrize("domain", [None, "rag"])
async def test_no_answer_is_a_doubt(tmp_path: Path, domain: str | None) -> None:
    classified = await classifier(tmp_path, Says(None)).classify(make_request(SHORT, domain=domain), ACTING)
    found = decide(replace(classified.signals, min_tokens=9000, max_tokens=9000), ACTING)
    assert (found.tier, found.reason) == (Tier.DENSE, Reason.CLASSIFIER_FAILED)


def observing(policy: Policy) -> Policy:
    return replace(policy, detection=replace(policy.detection, mode=DetectionMode.OBSERVE))


async def test_where_risk_is_only_observed_no_answer_changes_nothing(tmp_path: Path) -> None:
    watching = snapshot(map(observing, POLICIES))
    for value in (9.0, None):
        classified = await classifier(tmp_path, Says(value)).classify(make_request(SICK, domain="rag"), watching)
        assert (classified.signals.domain, classified.signals.classifier_error) == ("rag", "")


def test_a_router_without_the_file_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSITY_OPINION_MODEL", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"--opinion-seconds: .*model_file` fetches it"):
        SecondOpinion(1.0)


# The encoder, and the process that it is in.


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(fetched())


def test_texts_are_read_alike_alone_and_together(encoder: Encoder) -> None:
    texts = [SICK, "x", "日本の患者は入院した。", "", "half \ud800 pair", NEAR]
    together = encoder.vectors(texts)
    assert together is not None
    assert np.isfinite(together).all()
    for text, vector in zip(texts, together, strict=True):
        alone = encoder.vectors([text])
        assert alone is not None
        assert np.allclose(alone[0], vector, atol=1e-3)


def test_what_means_the_like_is_alike_in_other_languages(encoder: Encoder) -> None:
    found = encoder.vectors([SICK, "Mein Vater nimmt Marcumar und blutet seit gestern aus dem Zahnfleisch.", PLAIN])
    assert found is not None
    centred = found - found.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2]


def test_of_a_long_text_so_many_tokens_are_read_and_past_its_time_none(encoder: Encoder) -> None:
    assert len(encoder.tokens(SICK * 500)) == MOST_TOKENS + 2
    assert encoder.vectors([SICK], time.time() - 1) is None


@pytest.mark.parametrize("content", [b"", b"no model", b"\0" * 4096])
def test_what_is_no_model_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="model file"):
        ModelFile(content).tensor("emb.word", -1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second() -> AsyncIterator[SecondOpinion]:
    fetched()
    asking = SecondOpinion(60.0)
    with pytest.raises(NoOpinionError, match="not ready"):
        await asking.read([SICK])
    keeping = asyncio.create_task(asking.run())

    async def ready() -> bool:
        return asking._ready

    assert await until(ready, 120.0)
    yield asking
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_process_tells_illness_from_a_story(second: SecondOpinion) -> None:
    told = await second.read([SICK, PLAIN])
    medical = RISKY.index("medical")
    assert told[SICK][medical] > 0 > told[PLAIN][medical]


@pytest.mark.asyncio(loop_scope="module")
async def test_late_answers_and_too_many_questions_are_none(
    second: SecondOpinion, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(second, "_seconds", 0.001)
        with pytest.raises(NoOpinionError, match="ran out of time"):
            await second.read([SICK] * 64)
        changed.setattr(second, "_seconds", 60.0)
        changed.setattr(second, "_waiting", 8)
        with pytest.raises(NoOpinionError, match="8 prompts wait"):
            await second.read([SICK])
    assert await second.read(["the process did not go on with it"])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_lost_process_is_replaced(second: SecondOpinion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsity_serving.background.budget._RETRY_SECONDS", 0.5)
    assert second._pool is not None
    for process in list(second._pool._processes.values()):
        process.kill()
    with pytest.raises(NoOpinionError):
        await second.read([SICK])

    async def back() -> bool:
        try:
            return bool(await second.read(["and now?"]))
        except NoOpinionError:
            return False

    assert await until(back, 120.0)


async def test_explain_shows_both_words(tmp_path: Path) -> None:
    assert fetched() == present()
    assert present().name == FILE
    with Valkey() as server:
        config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0", opinion_seconds=60.0)
        async with running(config) as router:
            stored = await router.get("medical")
            stored.policy.detection.mode = "act"
            await router.edit("medical", policy=stored.policy, etag=stored.etag)

            async def findings() -> Any:
                request = make_request(SHORT, domain="rag")
                answer = await router.inference.Explain(inference_pb2.ExplainRequest(request=request))
                return [
                    each for each in answer.findings if each.domain == "medical" and each.HasField("second_opinion")
                ]

            assert await until(findings, 120.0)
            (found,) = await findings()
            assert found.second_opinion > 0.5
            assert 0 < found.first_opinion < 1
            assert found.outcome == "moved"
