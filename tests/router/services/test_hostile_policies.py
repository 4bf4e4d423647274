"""No policy can hang a router: what editors, the store and a folder bring is checked beside it, within limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio as redis
from sparsity.v1 import inference_pb2, policy_pb2, policy_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_policies.documents import confined
from sparsity_policies.storage.scripts import POLICIES
from sparsity_policies.storage.store import PolicyStore
from sparsity_policies.wire import policy_from_wire
from sparsity_router.config import RouterConfig
from support.loop_time import loop_is_free
from support.routers.rig import DENSE
from support.routers.router import Router, failure, running, until
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

from tests.policies.test_confined import BOMB, SLOW

FOUR = "[1,2,3].all(a, [1,2,3].all(b, [1,2,3].all(c, labels.all(d, labels.all(e, labels.all(f, a + b + c > 0))))))"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "CHECK_SECONDS", 1.0)


@asynccontextmanager
async def served(folder: Path, url: str | None = None, **options: Any) -> AsyncIterator[Router]:
    model = tiny_model(folder / "model")
    worker = await FakeWorker("d", DENSE, model).start()
    try:
        async with running(RouterConfig(model, (worker.address,), url, "127.0.0.1:0", **options)) as router:
            yield router
    finally:
        await worker.stop()


@contextlib.asynccontextmanager
async def others_go_on(router: Router) -> AsyncIterator[None]:
    """Callers who are answered meanwhile: within a bound on a machine that may be busy, by a loop that is free."""
    longest, stop = 0.0, asyncio.Event()

    async def call() -> None:
        nonlocal longest
        while not stop.is_set():
            started = time.monotonic()
            await router.tier("rag")
            longest = max(longest, time.monotonic() - started)
            await asyncio.sleep(0.005)

    calling = asyncio.create_task(call())
    async with loop_is_free(0.5):
        yield
    stop.set()
    await calling
    print(f"others waited {longest * 1000:.0f} ms at most", end=" ")
    assert 0 < longest < 2.0, f"somebody waited {longest:.1f} s"


def slow(policy: Any) -> None:
    policy.detection.patterns.append(SLOW)


def deep(policy: Any) -> None:
    policy.rules.add(name="deep", when=FOUR, tier=1)


@pytest.mark.parametrize("change", [slow, deep])
@pytest.mark.parametrize("method", ["put", "validate", "simulate"])
async def test_an_editor_is_refused_and_holds_up_nobody(
    tmp_path: Path, method: str, change: Callable[[Any], None]
) -> None:
    with Valkey() as server:
        async with served(tmp_path, server.url) as router:
            await router.tier("rag")
            draft = (await router.get("rag")).policy
            change(draft)
            async with others_go_on(router):
                if method == "simulate":
                    request = policy_pb2.SimulatePolicyRequest(policy=draft)
                    request.replay.FromSeconds(60)
                    call = router.policy.SimulatePolicy(request)
                else:
                    call = router.edit(policy=draft, validate_only=method == "validate")
                error = await failure(call)
            print(f"{error.code().name}: {error.details()[:90]}", end=" ")
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert ("rules[0].when" if change is deep else "detection.patterns") in error.details()
            assert (await router.edit(reason="the next one")).policy.revision


def crowded(count: int) -> list[tuple[int, int]]:
    """Bands that are moderate and dense in turn."""
    return [(number, 2 - number % 2) for number in range(count)]


async def test_a_rollout_of_millions_of_steps_is_refused_beside_the_loop(tmp_path: Path) -> None:
    with Valkey() as server:
        async with served(tmp_path, server.url) as router:
            asked = policy_pb2.UpdateRolloutRequest(domain="rag", action=1)
            asked.rollout.steps.extend([1] * 2**21)
            async with loop_is_free(0.4):
                error = await failure(router.policy.UpdateRollout(asked, timeout=60.0))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "rollout.steps" in error.details()


async def test_no_policy_has_more_bands_than_an_explanation_has_time_for(tmp_path: Path) -> None:
    with Valkey() as server:
        async with served(tmp_path, server.url) as router:
            error = await failure(router.edit("rag", crowded(6000)))
            assert (error.code(), error.details()) == (
                grpc.StatusCode.INVALID_ARGUMENT, "bands: are 6000; a policy has 256 at most"
            )  # fmt: skip
            await router.edit("rag", crowded(256))
            await router.becomes("TIER_MODERATE", "rag")
            request = inference_pb2.ExplainRequest(request=make_request("x" * 129, domain="rag"))
            async with loop_is_free(0.2):
                answer = await router.inference.Explain(request, timeout=60.0)
            tried = [line for line in answer.alternatives if line.startswith("with ")]
            # Every second of the first fifty.
            assert (len(tried), tried[0]) == (25, "with 1 prompt tokens: moderate")


async def test_a_store_with_a_policy_that_takes_long_is_served_without_it(tmp_path: Path) -> None:
    with Valkey() as server:
        async with served(tmp_path / "first", server.url):
            pass
        client = redis.Redis.from_url(server.url, decode_responses=True)
        for domain, field, value in (
            ("rag", "detection", {"patterns": [SLOW]}),
            ("code", "rules", [{"name": "deep", "when": FOUR, "tier": "dense"}]),
        ):
            envelope = json.loads(await client.hget(POLICIES, domain))
            envelope["body"] = json.dumps(json.loads(envelope["body"]) | {field: value})
            await client.hset(POLICIES, domain, json.dumps(envelope))
        await client.aclose()
        async with served(tmp_path / "second", server.url) as router:
            assert (await router.tier("rag"))[1] == "REASON_UNKNOWN_DOMAIN"
            assert (await router.tier("code"))[1] == "REASON_UNKNOWN_DOMAIN"
            assert (await router.tier("summarization", 300))[1] == "REASON_LENGTH_BAND"


HEAVY = [f"heavy-{letter}" for letter in "abcdef"]


def heavy(domain: str) -> Any:
    policy = policy_pb2.Policy(domain=domain, risk=policy_pb2.RISK_LOW)
    policy.bands.add(tier=DENSE)
    policy.detection.patterns.append(f"text of {domain}")
    return policy


@pytest.fixture
def three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those policies no four compile together within the limits."""
    compile_ = confined.Confined.compile

    def limited(self: confined.Confined, expressions: Sequence[str]) -> Any:
        if sum("heavy" in expression for expression in expressions) > 3:
            raise ValueError("the policies' detection takes more than 20 s to compile together")
        return compile_(self, expressions)

    monkeypatch.setattr(confined.Confined, "compile", limited)


async def test_policies_that_do_not_compile_together_are_refused_one_by_one(
    tmp_path: Path, three_at_once: None
) -> None:
    with Valkey() as server:
        async with served(tmp_path, server.url) as router:
            calls = [
                router.policy.PutPolicy(policy_pb2.PutPolicyRequest(policy=heavy(domain), reason="test"))
                for domain in HEAVY[:3]
            ]
            await asyncio.gather(*calls)
            for validate_only in (True, False):
                put = policy_pb2.PutPolicyRequest(policy=heavy(HEAVY[3]), reason="test", validate_only=validate_only)
                error = await failure(router.policy.PutPolicy(put))
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert error.details().startswith("detection: the policies' detection takes more than 20 s")
            simulate = policy_pb2.SimulatePolicyRequest(policy=heavy(HEAVY[3]))
            simulate.replay.FromSeconds(60)
            assert (await failure(router.policy.SimulatePolicy(simulate))).details().startswith("detection: ")
            # Whoever has one keeps it, and may do with it what does not ask for more.
            held = await router.get(HEAVY[0])
            held.policy.owner = "another"
            await router.edit(HEAVY[0], policy=held.policy)
            rollout = policy_pb2.Rollout(steps=[50, 100])
            await router.policy.UpdateRollout(
                policy_pb2.UpdateRolloutRequest(domain=HEAVY[0], action=1, rollout=rollout)
            )
            await router.edit("rag", [(0, 2)])
            await router.becomes("TIER_MODERATE")
            # In its place another fits, until it comes back.
            await router.policy.DeletePolicy(policy_pb2.DeletePolicyRequest(domain=HEAVY[0], reason="test"))
            await router.policy.PutPolicy(policy_pb2.PutPolicyRequest(policy=heavy(HEAVY[3]), reason="test"))
            back = policy_pb2.RollbackPolicyRequest(domain=HEAVY[0], to_revision=held.revision, reason="test")
            assert (await failure(router.policy.RollbackPolicy(back))).details().startswith("detection: ")


async def test_routers_follow_and_start_with_a_store_whose_policies_do_not_compile_together(
    tmp_path: Path, three_at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        async with served(tmp_path / "first", server.url) as router:
            # As two routers at once take them, or one that has more time.
            for domain in HEAVY:
                await store.put(policy_from_wire(heavy(domain)), etag=None, actor="a", reason="r")
            await router.edit("rag", [(0, 2)])
            await router.becomes("TIER_MODERATE")
            assert await watched(router) == set(HEAVY[3:])
            assert "heavy-d cannot be taken up (the policies' detection takes more than 20 s" in caplog.text
            await until(lambda: is_serving(router))
        async with served(tmp_path / "second", server.url) as router:
            assert (await router.tier("rag"))[0] == "TIER_MODERATE"
            assert await watched(router) <= set(HEAVY[3:])
            await router.edit("rag", [(0, 1)])
            await router.becomes("TIER_DENSE")
            await until(lambda: is_serving(router))
        await store.close()


async def is_serving(router: Router) -> bool:
    return await router.health() == "SERVING"


async def watched(router: Router) -> set[str]:
    """The domains that the router tells it holds back."""
    call = router.policy.WatchPolicies(policy_pb2.WatchPoliciesRequest())
    told = set((await call.read()).rejected_domains)
    call.cancel()
    return told


async def test_a_folder_with_a_file_that_cannot_be_read_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    plain = "domain: {0}\nrisk: low\nbands: [{{from_tokens: 0, tier: {1}}}]\n"
    for domain in ("rag", "code"):
        (policies / f"{domain}.yaml").write_text(plain.format(domain, "moderate"))
    async with served(tmp_path, policy_dir=policies) as router:
        assert (await router.tier("rag"))[0] == "TIER_MODERATE"
        for broken in (BOMB, plain.format("rag", "dense") + f"detection: {{patterns: ['{SLOW}']}}\n", "\0"):
            async with others_go_on(router):
                (policies / "rag.yaml").write_text(broken)
                (policies / "code.yaml").write_text(plain.format("code", "aggressive"))
                await router.becomes("TIER_AGGRESSIVE", "code")
                (policies / "code.yaml").write_text(plain.format("code", "moderate"))
                await router.becomes("TIER_MODERATE", "code")
            assert "rag cannot be read" in caplog.text
            assert "its last good version is kept" in caplog.text
            caplog.clear()
            assert (await router.tier("rag"))[0] == "TIER_MODERATE"
        (policies / "rag.yaml").write_text(plain.format("rag", "aggressive"))
        await router.becomes("TIER_AGGRESSIVE", "rag")
        await until(lambda: is_serving(router))


async def test_policies_do_not_wait_for_the_threads_of_prompts(tmp_path: Path) -> None:
    with Valkey() as server:
        async with served(tmp_path, server.url) as router:
            await router.tier("rag")
            release = threading.Event()
            prompts = [asyncio.create_task(asyncio.to_thread(release.wait, 20.0)) for _ in range(64)]
            try:
                await router.edit("rag", [(0, 2)])
                assert await router.becomes("TIER_MODERATE") < 5.0
                assert not any(prompt.done() for prompt in prompts)
            finally:
                release.set()
                await asyncio.gather(*prompts)


def slow_to_simulate() -> policy_pb2.SimulatePolicyRequest:
    """A draft and signals that are minutes of work, each within its bounds."""
    request = policy_pb2.SimulatePolicyRequest()
    request.policy.MergeFrom(policy_pb2.Policy(domain="rag", risk=policy_pb2.RISK_LOW))
    request.policy.bands.add(tier=DENSE)
    for number in range(3):
        every = f"labels.all(a, labels.all(b, labels[a] != labels[b] + '{number}'))"
        request.policy.rules.add(name=f"r{number}", when=f"!{every}", tier=DENSE)
    for _ in range(1900):
        signals = request.signals.add(domain="rag", min_tokens=9, max_tokens=9)
        signals.labels.update({f"{label}": "v" for label in range(64)})
    return request


def test_a_router_ends_soon_while_it_simulates(tmp_path: Path) -> None:
    drained = ("--drain-seconds", "0.2")
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url, *drained) as router:
        channel = grpc.insecure_channel(router.address)
        with channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            slow = slow_to_simulate()
            calls = [stub.SimulatePolicy.future(slow) for _ in range(3)]
            time.sleep(1.0)
            assert not any(call.done() for call in calls)
            # Who comes meanwhile, waits for none of them.
            asked = policy_pb2.SimulatePolicyRequest(policy=heavy("other"), signals=slow.signals[:1])
            assert stub.SimulatePolicy(asked, timeout=20.0).summary.requests == 1
            router.signal(signal.SIGTERM)
            started = time.monotonic()
            while router.alive():
                assert time.monotonic() - started < 5.0
                time.sleep(0.05)
            assert all(call.exception(timeout=5.0) is not None for call in calls)


@pytest.mark.parametrize(
    ("override", "request_", "field"),
    [
        ({"scope": 99}, {}, "override.scope"),
        ({"max_tier": 99}, {}, "override.max_tier"),
        ({"expire_time": {"seconds": 2**63 - 1}}, {}, "override.expire_time"),
        ({"expire_time": {"nanos": -(2**31)}}, {}, "override.expire_time"),
        ({}, {"ttl": {"seconds": 2**63 - 1}}, "ttl"),
        ({}, {"ttl": {"seconds": 315_576_000_000}}, "ttl"),
        ({"reason": "x" * 4097}, {}, "reason"),
        ({"id": "x" * 257}, {}, "override.id"),
    ],
)
async def test_an_override_of_odd_values_names_the_field(
    tmp_path: Path, override: dict[str, Any], request_: dict[str, Any], field: str
) -> None:
    with Valkey() as server:
        async with served(tmp_path, server.url) as router:
            good: dict[str, Any] = {"scope": 1, "reason": "incident"}
            message = policy_pb2.PutOverrideRequest(override=policy_pb2.Override(**good | override), **request_)
            error = await failure(router.policy.PutOverride(message))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details().startswith(f"{field}: ")
            assert not (await router.policy.ListOverrides(policy_pb2.ListOverridesRequest())).overrides
