"""Domains: declared, scanned for, detected by meaning; the riskier one counts, and in doubt it is dense."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import pytest_asyncio
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_policies.decisions.decide import decide, hangs_on_length
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Decision, Override, Policy, Reason, Risk, Scope, Signals, Tier
from sparsity_policies.wire import signals_from_wire, signals_to_wire
from sparsity_router.config import RouterConfig
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.corpus import excerpt
from sparsity_router.prompts.domains import Found, Score, resolve
from sparsity_router.prompts.embedding import WINDOW_TOKENS, Embedder
from sparsity_router.prompts.embedding_model import model_files
from sparsity_router.prompts.semantic import DetectionError, Detector
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.bounds import MAX_ALSO
from support.asked.prompts import LABELLED
from support.routers.router import running, until
from support.stores.snapshots import snapshot
from support.stores.valkey import Valkey
from support.tiny import tiny_model

SHIPPED = snapshot(list(shipped_policies("small-context")))
RISKS = {domain: item.policy.risk for domain, item in SHIPPED.policies.items()}


def scores(**found: tuple[float, float] | float) -> dict[str, Score]:
    pairs = {name: value if isinstance(value, tuple) else (value, value) for name, value in found.items()}
    return {name.replace("_", "-"): Score(*pair) for name, pair in pairs.items()}


def test_a_declared_domain_gives_way_to_a_riskier_one_only() -> None:
    assert resolve("rag", (), {}, SHIPPED) == Found("rag")
    assert resolve("rag", ("medical",), {}, SHIPPED) == Found("medical", "rag", detected=True)
    assert resolve("medical", ("rag", "code"), {}, SHIPPED) == Found("medical")
    assert resolve("medical", ("legal", "medical"), {}, SHIPPED) == Found("medical", also=("legal",))
    assert resolve("rag", ("medical", "legal"), {}, SHIPPED) == Found("legal", "rag", True, also=("medical",))
    assert resolve("nobody", ("medical",), {}, SHIPPED) == Found("nobody")
    assert resolve("rag", (), scores(legal=0.45, code=0.9), SHIPPED) == Found("legal", "rag", True, 0.45)
    assert resolve("rag", (), scores(legal=0.39), SHIPPED) == Found("rag")


def test_an_undeclared_prompt_must_be_like_a_domain_throughout() -> None:
    assert resolve("", (), {}, SHIPPED) == Found("")
    assert resolve("", ("rag", "legal"), scores(support_chat=0.9), SHIPPED) == Found("legal", detected=True)
    assert resolve("", (), scores(support_chat=(0.9, 0.5), legal=0.2), SHIPPED) == Found("support-chat", "", True, 0.5)
    one_window_is_legal = scores(support_chat=(0.9, 0.5), legal=(0.3, 0.01))
    assert resolve("", (), one_window_is_legal, SHIPPED) == Found("legal", "", True, 0.3)
    assert resolve("", ("legal", "medical"), {}, SHIPPED) == Found("legal", detected=True, also=("medical",))
    two_are = scores(support_chat=0.9, legal=0.3, medical=0.5)
    assert resolve("", (), two_are, SHIPPED) == Found("medical", "", True, 0.5, also=("legal",))


def decided(**signals: Any) -> Decision:
    return decide(Signals(5000, 5000, **signals), SHIPPED)


def test_little_confidence_is_dense() -> None:
    assert decided(domain="support-chat", detected=True, confidence=0.5).tier is Tier.AGGRESSIVE
    found = decided(domain="support-chat", detected=True, confidence=0.39)
    assert (found.tier, found.reason) == (Tier.DENSE, Reason.LOW_CONFIDENCE)


def test_a_domain_in_the_place_of_the_declared_one_is_never_sparser() -> None:
    strict = parse_policy({"domain": "strict", "risk": "low", "bands": [{"from_tokens": 0, "tier": "dense"}]})
    lax = parse_policy({"domain": "lax", "risk": "elevated", "bands": [{"from_tokens": 0, "tier": "aggressive"}]})
    both = snapshot([strict, lax])
    signals = Signals(9, 9, domain="lax", detected=True, declared="strict")
    found = decide(signals, both)
    assert (found.tier, found.matched_rule) == (Tier.DENSE, "declared[strict]")
    assert decide(Signals(9, 9, domain="lax"), both).tier is Tier.AGGRESSIVE
    kill = Override("k", Scope.DOMAIN, "strict", Tier.MODERATE)
    open_ = parse_policy({"domain": "strict", "risk": "low", "bands": [{"from_tokens": 0, "tier": "aggressive"}]})
    killed = decide(signals, snapshot([open_, lax]).with_overrides([kill]))
    assert (killed.tier, killed.reason) == (Tier.MODERATE, Reason.KILL_SWITCH)


@pytest.mark.parametrize("domain", [None, "low", "a"])
async def test_of_domains_of_one_risk_each_may_make_it_denser(tmp_path: Path, domain: str | None) -> None:
    def policy(name: str, risk: str, tier: str, **more: Any) -> Policy:
        bands = [{"from_tokens": 0, "tier": tier}]
        return parse_policy({"domain": name, "risk": risk, "bands": bands, **more})

    found = {"a": "moderate", "b": "dense"}
    low = policy("low", "low", "aggressive")
    both = [policy(name, "elevated", tier, detection={"literals": [f"word {name}"]}) for name, tier in found.items()]
    classifier, at = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000), snapshot([low, *both])
    signals = (await classifier.classify(make_request("word a, word b", domain=domain), at)).signals
    assert (signals.domain, signals.also) == ("a", ("b",))
    assert (decide(signals, at).tier, decide(signals, at).matched_rule) == (Tier.DENSE, "also[b]")
    assert decide(signals, at).lasting is Tier.DENSE
    lax = snapshot([low, both[0], policy("b", "elevated", "aggressive", detection={"literals": ["word b"]})])
    assert decide(signals, lax).tier is Tier.MODERATE
    killed = decide(signals, lax.with_overrides([Override("k", Scope.DOMAIN, "b")]))
    assert (killed.tier, killed.reason) == (Tier.DENSE, Reason.KILL_SWITCH)
    grows = [{"from_tokens": 0, "tier": "aggressive"}, {"from_tokens": 1000, "tier": "dense"}]
    longer = parse_policy({"domain": "b", "risk": "elevated", "bands": grows})
    assert hangs_on_length(replace(signals, min_tokens=1, max_tokens=2000), snapshot([low, both[0], longer]))
    # Replay and simulation decide from what was recorded.
    assert signals_from_wire(signals_to_wire(signals), "signals", 0.0).also == ("b",)


async def test_more_domains_of_one_risk_than_are_looked_at_are_a_doubt(tmp_path: Path) -> None:
    bands, names = [{"from_tokens": 0, "tier": "aggressive"}], [f"d{number}" for number in range(MAX_ALSO + 2)]
    policies = [
        parse_policy({"domain": name, "risk": "low", "bands": bands, "detection": {"literals": [f"word {name} ends"]}})
        for name in names
    ]
    classifier, at = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000), snapshot(policies)
    for count, tier in ((MAX_ALSO + 1, Tier.AGGRESSIVE), (MAX_ALSO + 2, Tier.DENSE)):
        text = ", ".join(f"word {name} ends" for name in names[:count])
        assert decide((await classifier.classify(make_request(text), at)).signals, at).tier is tier


async def test_the_scan_reveals_a_domain_without_a_flag(tmp_path: Path) -> None:
    bands = [{"from_tokens": 0, "tier": "aggressive"}]
    low = parse_policy({"domain": "low", "risk": "low", "bands": bands})
    detection = {"literals": ["radiation dose"]}
    risky = {"domain": "risky", "risk": "high", "detection": detection, "bands": [{"from_tokens": 0, "tier": "dense"}]}
    at = snapshot([low, parse_policy(risky)])
    classifier = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000)
    for declared, domain, instead in (("low", "risky", "low"), (None, "risky", ""), ("nobody", "nobody", "")):
        request = make_request("the Radiation\ndose was", domain=declared)
        signals = (await classifier.classify(request, at)).signals
        assert (signals.domain, signals.declared, signals.flags) == (domain, instead, frozenset())
        assert decide(signals, at).tier is Tier.DENSE
    plain = (await classifier.classify(make_request("plain", domain="low"), at)).signals
    assert (plain.domain, plain.detected) == ("low", False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Detector]:
    made = Detector(None, seconds=20.0)
    running = asyncio.create_task(made.run(SimpleNamespace(snapshot=SHIPPED)))

    async def ready() -> bool:
        try:
            return bool(await made.detect("ready?", SHIPPED))
        except DetectionError:
            return False

    await until(ready, 60.0)
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_meaning_tells_the_domain_and_no_risky_prompt_is_taken_for_less(detector: Detector) -> None:
    granted = right = 0
    for label, text in LABELLED:
        found = resolve("", (), await detector.detect(text, SHIPPED), SHIPPED)
        signals = Signals(5000, 5000, domain=found.domain, detected=found.detected, confidence=found.confidence)
        if label and RISKS[label] is Risk.HIGH:
            assert decide(signals, SHIPPED).tier is Tier.DENSE, (text, found)
        right += found.confidence >= 0.4 and found.domain == label
        granted += decide(signals, SHIPPED).tier is not Tier.DENSE and label != "support-chat"
    assert granted == 0
    assert right >= 6


@pytest.mark.asyncio(loop_scope="module")
async def test_one_window_of_a_long_prompt_is_enough(detector: Detector) -> None:
    filler = "Where is my parcel? I ordered shoes and want to know when they arrive. " * 60
    planted = filler + " The patient was admitted with acute chest pain and elevated troponin levels. " * 5 + filler
    plain = resolve("", (), await detector.detect(filler, SHIPPED), SHIPPED)
    found = resolve("", (), await detector.detect(planted, SHIPPED), SHIPPED)
    assert plain.domain == "support-chat"
    assert found.domain == "medical"
    declared = resolve("support-chat", (), await detector.detect(planted, SHIPPED), SHIPPED)
    assert (declared.domain, declared.declared) == ("medical", "support-chat")


def memory(detector: Detector, what: str) -> int:
    """Of the classifier's process, in MiB."""
    assert detector._pool is not None
    (pid,) = detector._pool._processes
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def processor_seconds(detector: Detector) -> float:
    """What the classifier's process has spent."""
    assert detector._pool is not None
    (pid,) = detector._pool._processes
    return sum(psutil.Process(pid).cpu_times()[:2])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_long_prompt_costs_the_classifier_little_memory(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = memory(detector, "VmRSS")
    monkeypatch.setattr(detector, "_seconds", 2.0)
    with pytest.raises(DetectionError, match="cannot read 4194304 characters within its 2 s"):
        await detector.detect("risk " * (2**22 // 5) + "risk", SHIPPED)
    with pytest.raises(DetectionError, match="ran out of time"):
        await detector.detect("risk " * 390_000, SHIPPED)
    # One word is one unknown token a piece, which is read in time: that of a processor, however busy the machine is.
    monkeypatch.setattr(detector, "_seconds", 60.0)
    spent = processor_seconds(detector)
    assert await detector.detect("a" * 1_990_000, SHIPPED)
    assert processor_seconds(detector) - spent < 2.0
    assert memory(detector, "VmHWM") - before < 150


def test_windows_do_not_hang_on_how_a_text_is_cut() -> None:
    embedder = Embedder(*model_files(None))
    text = " ".join(f"word{number} of\nthe text," for number in range(4000))
    ids = embedder._tokenizer.encode(text, add_special_tokens=False).ids
    windows = list(embedder.windows(text))
    assert len(text) > 4 * 16_384
    assert [token for window in windows for token in window] == ids
    assert {len(window) for window in windows[:-1]} == {WINDOW_TOKENS}
    assert list(embedder.windows("")) == [[]]


@pytest.mark.asyncio(loop_scope="module")
async def test_past_its_time_there_is_no_answer(detector: Detector) -> None:
    detector._seconds = 0.05
    with pytest.raises(DetectionError, match="ran out of time"):
        await detector.detect(excerpt(50_000), SHIPPED)
    detector._seconds = 20.0
    assert await detector.detect("the process did not go on with it", SHIPPED)


class Deaf:
    """A detector that never answers."""

    async def detect(self, text: str, at: Any) -> dict[str, Score]:
        raise DetectionError("semantic detection ran out of time (1 s)")


@pytest.mark.parametrize("domain", [None, "rag"])
async def test_no_answer_is_a_doubt_whatever_was_declared(tmp_path: Path, domain: str | None) -> None:
    deaf: Any = Deaf()
    classifier = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000, deaf, doubts_declared=True)
    signals = (await classifier.classify(make_request("hello", domain=domain), SHIPPED)).signals
    found = decide(replace(signals, min_tokens=9000, max_tokens=9000), SHIPPED)
    assert (found.tier, found.reason) == (Tier.DENSE, Reason.CLASSIFIER_FAILED)


async def test_who_is_not_asked_owes_no_answer(tmp_path: Path) -> None:
    deaf: Any = Deaf()
    classifier = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000, deaf)
    declared = (await classifier.classify(make_request("hello", domain="rag"), SHIPPED)).signals
    assert (declared.domain, declared.classifier_error) == ("rag", "")
    scanned = (await classifier.classify(make_request("under attorney-client privilege"), SHIPPED)).signals
    assert (scanned.domain, scanned.detected, scanned.classifier_error) == ("legal", True, "")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_lost_process_is_replaced(detector: Detector) -> None:
    assert detector._pool is not None
    for process in list(detector._pool._processes.values()):
        process.kill()
    with pytest.raises(DetectionError):
        await detector.detect("now?", SHIPPED)
    detector._ready = ""

    async def back() -> bool:
        try:
            return bool(await detector.detect("and now?", SHIPPED))
        except DetectionError:
            return False

    await until(back, 60.0)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", [RuntimeError("no memory"), asyncio.CancelledError()])
async def test_whatever_ends_the_process_is_no_answer(detector: Detector, fault: BaseException) -> None:
    async def ask(*_: Any) -> Any:
        raise fault

    detector._ask = ask  # type: ignore[method-assign]
    try:
        with pytest.raises(DetectionError):
            await detector.detect("and now?", SHIPPED)
    finally:
        del detector._ask


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--detect-model: .*model\.onnx is missing"):
        Detector(tmp_path, 1.0)


async def test_a_router_detects_what_nobody_declared(tmp_path: Path) -> None:
    with Valkey() as server:
        config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0", detect_seconds=20.0)
        async with running(config, detect="undeclared") as router:
            request = make_request("I was charged twice this month and want a refund for my subscription.")

            async def explained() -> Any:
                answer = await router.inference.Explain(inference_pb2.ExplainRequest(request=request))
                return None if answer.signals.classifier_error else answer

            answer = await until(explained, 60.0)
    assert answer.signals.domain == "support-chat"
    assert answer.signals.domain_source == inference_pb2.DOMAIN_SOURCE_DETECTED
    assert 0.4 <= answer.signals.confidence < 1
    assert answer.decision.reason == inference_pb2.REASON_LENGTH_BAND


async def test_a_domain_that_is_deleted_meanwhile_is_passed_over(tmp_path: Path) -> None:
    """Its scores are still there when the prompt is held against the policies that are left."""

    class Sure:
        async def detect(self, text: str, at: Any) -> dict[str, Score]:
            return {"gone": Score(0.9, 0.9), "left": Score(0.6, 0.6)}

    sure: Any = Sure()
    bands = [{"from_tokens": 0, "tier": "moderate"}]
    gone, left = (parse_policy({"domain": name, "risk": "low", "bands": bands}) for name in ("gone", "left"))
    classifier = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000, sure)
    classified = await classifier.classify(make_request("hello"), snapshot([gone, left]))
    assert classified.signals.domain == "gone"
    assert classified.under(snapshot([left])).domain == "left"
    assert classified.under(snapshot([])).domain == ""
