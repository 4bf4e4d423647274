"""Policies that would hang a router (C1 to C5), through real routers; what others wait meanwhile is bounded."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_client.wire import make_request
from sparsity_policies.documents import confined
from sparsity_policies.storage.scripts import POLICIES
from support.ports import free_port
from support.routers.chaos_fleet import SPARSE, fleet
from support.routers.embedded import SPARSITY
from support.routers.rig import DENSE
from support.routers.router import Router, failure, until
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey
from support.telling import tell

from tests.policies.test_confined import BOMB, SLOW
from tests.router.services.test_hostile_policies import FOUR

pytestmark = pytest.mark.chaos
TWO = "labels.all(a, labels.all(b, labels[a] != labels[b] + 'x'))"
PLAIN = "domain: {0}\nrisk: low\nbands: [{{from_tokens: 0, tier: {1}}}]\n"


async def refused(call: Awaitable[Any], field: str) -> str:
    error = await failure(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.details()
    return f"{error.code().name}: {error.details()[:100]}"


async def test_a_rule_that_takes_long_is_refused_and_one_at_its_bound_is_quick(tmp_path: Path) -> None:
    async with fleet(tmp_path) as at:
        policy = (await at.router.get()).policy
        policy.rules.add(name="deep", when=FOUR, tier=DENSE)
        came = await refused(at.router.edit(policy=policy), "rules[0].when")
        policy.rules[0].when = TWO
        await at.router.edit(policy=policy)
        await at.router.becomes("TIER_DENSE")
        labels = {f"{number}".ljust(256): "v" * 255 + chr(65 + number) for number in range(64)}
        started = time.monotonic()
        assert (await at.router.generate(labels=labels)).worker_id == "d"
        took = time.monotonic() - started
        assert took < 0.5
    came += f"; 64 labels of 512 characters in a rule at its bound: {took * 1000:.0f} ms"
    tell("C1", "comprehensions over labels, six deep", came, at.others)


async def test_a_policy_of_thousands_of_bands_is_refused(tmp_path: Path) -> None:
    bands = [(number, 1 + number % 3) for number in range(6000)]
    async with fleet(tmp_path) as at:
        came = await refused(at.router.edit("rag", bands), "bands")
        await at.router.edit("rag", bands[:256])
        started = time.monotonic()
        await asyncio.gather(*(at.router.tier("rag") for _ in range(20)))
        took = time.monotonic() - started
    came += f"; 20 explanations of one of 256: {took * 1000:.0f} ms"
    tell("C1", f"{len(bands)} bands", came, at.others)


async def _put(router: Router, policy: Any) -> None:
    await router.edit(policy=policy)


async def _validate(router: Router, policy: Any) -> None:
    await router.edit(policy=policy, validate_only=True)


async def _simulate(router: Router, policy: Any) -> None:
    request = policy_pb2.SimulatePolicyRequest(policy=policy)
    request.replay.FromSeconds(60)
    await router.policy.SimulatePolicy(request)


@pytest.mark.parametrize("method", [_put, _validate, _simulate])
async def test_a_pattern_that_takes_long_is_refused(
    tmp_path: Path, method: Callable[[Router, Any], Awaitable[None]]
) -> None:
    async with fleet(tmp_path) as at:
        policy = (await at.router.get()).policy
        policy.detection.patterns.append(SLOW)
        came = await refused(method(at.router, policy), "detection.patterns")
        # Told of by the limit, and not by whatever a pattern of that size meets in the end.
        assert "takes more than" in came
    tell("C2", f"`{SLOW}` to {method.__name__[1:]}", came, at.others)


async def test_a_pattern_that_takes_long_in_the_store_is_left_out(tmp_path: Path) -> None:
    with Valkey() as server:
        async with fleet(tmp_path / "first", redis_url=server.url):
            pass
        client: Any = server.client()
        envelope = json.loads(client.hget(POLICIES, "summarization"))
        envelope["body"] = json.dumps(json.loads(envelope["body"]) | {"detection": {"patterns": [SLOW]}})
        client.hset(POLICIES, "summarization", json.dumps(envelope))
        async with fleet(tmp_path / "second", redis_url=server.url) as at:
            came = (await at.router.tier("summarization"))[1]
            assert came == "REASON_UNKNOWN_DOMAIN"
            assert (await at.router.tier("summarization"))[0] == "TIER_DENSE"
    tell("C2", f"`{SLOW}` in the store at start", came, at.others)


async def test_a_rollout_of_what_takes_long_by_now_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = "[^a]{1,400}[^b]{1,400}z"
    async with fleet(tmp_path) as at:
        policy = (await at.router.get()).policy
        policy.detection.patterns.append(pattern)
        written = (await at.router.edit(policy=policy)).policy.etag

        async def taken_up() -> bool:
            return bool((await at.router.get()).etag == written)

        # On a busy machine that takes longer than the call waits for it; a rollout over the old etag would be aborted.
        await until(taken_up, 60.0)
        # As on a router with less time: what was taken once is checked again before it is written again.
        monkeypatch.setattr(confined, "CHECK_SECONDS", 0.05)
        rollout = policy_pb2.Rollout(steps=[50, 100])
        start = policy_pb2.UpdateRolloutRequest(domain="rag", action=1, rollout=rollout)
        came = await refused(at.router.policy.UpdateRollout(start), "detection.patterns")
        assert "takes more than" in came
        assert not (await at.router.get()).policy.HasField("rollout")
    tell("C2", f"UpdateRollout of a policy with `{pattern}`, which took less time once", came, at.others)


async def test_the_command_line_refuses_what_takes_long(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "slow.yaml").write_text(PLAIN.format("slow", "dense") + f"detection: {{patterns: ['{SLOW}']}}\n")
    async with fleet(tmp_path, at_most=5.0) as at:
        started = time.monotonic()
        command = [SPARSITY, "policy", "lint", str(tmp_path / "bomb.yaml"), str(tmp_path / "slow.yaml")]
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2)
        said, _ = await asyncio.wait_for(process.communicate(), 60.0)
        took = time.monotonic() - started
        assert process.returncode not in (0, None)
        assert b"bomb.yaml" in said
        assert b"slow.yaml" in said
    sent = f"{len(BOMB)} bytes of YAML aliases, and `{SLOW}`, to `policy lint`"
    tell("C2", sent, f"exit {process.returncode} after {took:.1f} s", at.others)


def scraped(address: str, name: str) -> float:
    """A metric's value as a Prometheus server reads it."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5.0) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_a_loop_that_stands_still_is_told_and_ended(tmp_path: Path) -> None:
    stuck, probes, metrics = tmp_path / "stuck", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    arguments = ("--health-listen", probes, "--metrics-listen", metrics)

    async def liveness() -> str:
        async with grpc.aio.insecure_channel(probes) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=2.0)
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def explain(router: Router) -> Any:
        return router.inference.Explain(inference_pb2.ExplainRequest(request=make_request("y" * 120, domain="rag")))

    with Valkey() as server:
        process = RouterProcess(
            tmp_path, "--redis-url", server.url, *arguments, module=("support.routers.stuck_router", str(stuck))
        )
        await asyncio.to_thread(process.__enter__)
        router = Router(int(process.address.rpartition(":")[2]))
        try:
            await router.edit("rag", SPARSE)
            await router.becomes("TIER_AGGRESSIVE")
            before = (await explain(router)).decision.reason
            stuck.touch()
            await asyncio.sleep(0.5)
            waiting = asyncio.ensure_future(explain(router))
            process.signal(signal.SIGUSR1)
            lives = [await liveness()]
            await asyncio.sleep(11.0)
            lives.append(await liveness())
            stalled = await asyncio.to_thread(scraped, metrics, "sparsity_router_loop_stalled_seconds")
            assert not waiting.done()
            stuck.unlink()
            reasons = [inference_pb2.Reason.Name(reason) for reason in (before, (await waiting).decision.reason)]
            await asyncio.sleep(1.0)
            lives.append(await liveness())
            stuck.touch()
            await asyncio.sleep(0.5)
            started = time.monotonic()
            process.signal(signal.SIGTERM)
            while process.alive():
                assert time.monotonic() - started < 20.0
                await asyncio.sleep(0.1)
            took = time.monotonic() - started
        finally:
            stuck.unlink(missing_ok=True)
            await router.channel.close()
            await asyncio.to_thread(process.__exit__, None, None, None)
    assert lives == ["SERVING", "NOT_SERVING", "SERVING"]
    assert reasons == ["REASON_LENGTH_BAND", "REASON_KILL_SWITCH"]
    assert stalled > 10.0
    came = f"liveness {lives}, a metric of {stalled:.0f} s, an end {took:.1f} s after SIGTERM"
    tell(
        "C3", "a loop that stands still, and the kill switch and SIGTERM by signal", came, f"waited, then {reasons[1]}"
    )


async def test_policies_do_not_wait_for_the_threads_of_prompts(tmp_path: Path) -> None:
    release = threading.Event()
    async with fleet(tmp_path) as at:
        prompts = [asyncio.create_task(asyncio.to_thread(release.wait, 30.0)) for _ in range(64)]
        try:
            await at.router.edit("rag", [(0, 2)])
            took = await at.router.becomes("TIER_MODERATE")
            assert not any(prompt.done() for prompt in prompts)
        finally:
            release.set()
            await asyncio.gather(*prompts)
        assert took < 5.0
    tell("C4", f"an edit while {len(prompts)} prompts hold every thread", f"in force after {took:.2f} s", at.others)


async def test_a_folder_with_a_file_that_cannot_be_read_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    for domain, tier in (("rag", "aggressive"), ("code", "moderate")):
        (policies / f"{domain}.yaml").write_text(PLAIN.format(domain, tier))
    async with fleet(tmp_path, policy_dir=policies) as at:
        (policies / "rag.yaml").write_text(BOMB)
        (policies / "code.yaml").write_text(PLAIN.format("code", "aggressive"))
        took = await at.router.becomes("TIER_AGGRESSIVE", "code")
        kept = (await at.router.tier())[0]
        assert kept == "TIER_AGGRESSIVE"
        assert "rag cannot be read" in caplog.text
        (policies / "rag.yaml").write_text(PLAIN.format("rag", "moderate"))
        await at.router.becomes("TIER_MODERATE")

        async def serving() -> bool:
            return await at.router.health() == "SERVING"

        await until(serving)
    came = f"told, its last good version kept ({kept}), another file's edit in force after {took:.1f} s"
    tell("C5", f"{len(BOMB)} bytes of YAML aliases in a policy folder", came, at.others)
