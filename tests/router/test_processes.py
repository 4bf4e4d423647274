"""Several router processes on one port, which act as one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc, policy_pb2, policy_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_policies.model import Override, Scope
from sparsity_router.following.overrides import Overrides
from sparsity_router.following.siblings import Siblings
from sparsity_router.processes import shared_port as processes
from sparsity_router.processes.early_signals import KEPT, EarlySignals
from sparsity_rpc.errors import ConfigurationError
from support.ports import free_port
from support.routers.overrides import ENDED, read
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey

_FRESH = [("grpc.use_local_subchannel_pool", 1)]


def eventually(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
    return value


def tiers(address: str, connections: int = 32) -> set[int]:
    """The tiers that many connections get, which the kernel spreads: one process in three is hardly missed by all."""
    found = set()
    for _ in range(connections):
        with grpc.insecure_channel(address, options=_FRESH) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
            request = inference_pb2.ExplainRequest(request=make_request("y" * 120, domain="lax"))
            found.add(stub.Explain(request, wait_for_ready=True, timeout=10.0).decision.tier)
    return found


def revisions(channel: grpc.Channel) -> list[int]:
    """Of the policies that each process decides from that was heard of."""
    stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
    return [told.policy_revision for told in stub.GetFleet(fleet_pb2.GetFleetRequest()).routers]


def children(router: RouterProcess) -> list[int]:
    return sorted(child.pid for child in psutil.Process(router._process.pid).children() if _lives(child))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_processes_share_a_port_and_a_kill_switch_without_the_store(tmp_path: Path) -> None:
    # By the file a process that is started again knows policies that it cannot ask the store for.
    options = ("--processes", "3", "--snapshot-file", str(tmp_path / "policies.json"))
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url, *options) as router:
        assert len(children(router)) == 3
        with grpc.insecure_channel(router.address) as channel:
            policy: Any = policy_pb2_grpc.PolicyServiceStub(channel)
            bands = [policy_pb2.LengthBand(from_tokens=0, tier=inference_pb2.TIER_AGGRESSIVE)]
            lax = policy_pb2.Policy(domain="lax", risk=policy_pb2.RISK_LOW, bands=bands)
            revision = policy.PutPolicy(policy_pb2.PutPolicyRequest(policy=lax, reason="test")).policy.revision
            eventually(lambda: tiers(router.address) == {inference_pb2.TIER_AGGRESSIVE})
            # One that begins to listen later has not answered yet, and must have the policy before its store is gone.
            eventually(lambda: revisions(channel) == [revision] * 3)
            server.stop()
            scope = policy_pb2.OVERRIDE_SCOPE_GLOBAL
            override = policy_pb2.Override(scope=scope, max_tier=inference_pb2.TIER_DENSE, reason="incident")
            made = policy.PutOverride(policy_pb2.PutOverrideRequest(override=override), timeout=10.0).override
            eventually(lambda: tiers(router.address) == {inference_pb2.TIER_DENSE})
            victim = children(router)[0]
            os.kill(victim, signal.SIGKILL)
            with grpc.insecure_channel(router.address, options=_FRESH) as again:
                stub: Any = policy_pb2_grpc.PolicyServiceStub(again)
                stub.DeleteOverride(policy_pb2.DeleteOverrideRequest(id=made.id), timeout=10.0, wait_for_ready=True)
            eventually(lambda: tiers(router.address) == {inference_pb2.TIER_AGGRESSIVE})
        router.signal(signal.SIGUSR1)
        eventually(lambda: tiers(router.address) == {inference_pb2.TIER_DENSE})
        router.signal(signal.SIGUSR2)
        eventually(lambda: tiers(router.address) == {inference_pb2.TIER_AGGRESSIVE})


def test_a_process_that_ends_is_started_again(tmp_path: Path) -> None:
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url, "--processes", "2") as router:
        before = children(router)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(children(router)) == 2 and children(router) != before)
        assert tiers(router.address) == {inference_pb2.TIER_DENSE}
    assert router._process.returncode == 0


def lax_folder(folder: Path) -> tuple[str, str]:
    """Options of a router without a store, whose one policy is sparse."""
    policies = folder / "policies"
    policies.mkdir()
    (policies / "lax.yaml").write_text("domain: lax\nrisk: low\nbands: [{from_tokens: 0, tier: aggressive}]\n")
    return "--policy-dir", str(policies)


def test_of_early_switches_the_last_counts_and_they_act_once() -> None:
    before, acted = {number: signal.getsignal(number) for number in KEPT}, []
    handlers = {number: partial(acted.append, number) for number in KEPT}
    early = EarlySignals()
    try:
        early.keep()
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
            os.kill(os.getpid(), number)
        early.hand_over(handlers)
        assert acted == [signal.SIGUSR2, signal.SIGHUP]
        os.kill(os.getpid(), signal.SIGUSR1)
        early.hand_over(handlers)
        early.hand_over(handlers)
        assert acted[2:] == [signal.SIGUSR1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize(
    ("early", "tier"),
    [
        ((signal.SIGHUP,), inference_pb2.TIER_AGGRESSIVE),
        ((signal.SIGUSR1,), inference_pb2.TIER_DENSE),
        ((signal.SIGUSR2,), inference_pb2.TIER_AGGRESSIVE),
        # Nobody knows in which order they came.
        ((signal.SIGUSR1, signal.SIGUSR2), inference_pb2.TIER_DENSE),
    ],
)
def test_a_signal_that_comes_before_there_is_a_router_acts_once_there_is_one(
    tmp_path: Path, count: str, early: tuple[signal.Signals, ...], tier: int
) -> None:
    starting = RouterProcess(tmp_path, *lax_folder(tmp_path), "--processes", count)
    starting.early = early
    with starting as router:
        # Each process decides by it from its first answer on, and none was ended.
        assert tiers(router.address) == {tier}
        assert "started again" not in router.log.read_text()


def test_a_kill_switch_that_comes_while_all_processes_are_gone_acts_on_the_next_ones(tmp_path: Path) -> None:
    with RouterProcess(tmp_path, *lax_folder(tmp_path), "--processes", "2") as router:
        before = children(router)
        for child in before:
            os.kill(child, signal.SIGKILL)
        eventually(lambda: not children(router))
        router.signal(signal.SIGUSR1)
        eventually(router.serving, 60.0)
        assert tiers(router.address) == {inference_pb2.TIER_DENSE}


def test_processes_share_the_http_port_too(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = ("--processes", "2", "--http-listen", address)
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url, *options) as router:

        def all_answer() -> bool:
            try:
                statuses = [httpx.get(f"http://{address}/v1/models", trust_env=False).status_code for _ in range(16)]
            except httpx.TransportError:
                return False
            return set(statuses) == {200}

        eventually(all_answer)
        before = children(router)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(children(router)) == 2 and children(router) != before)
        eventually(all_answer)


def test_what_cannot_be_used_ends_all(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path, "--redis-url", "redis://127.0.0.1:1/0", "--processes", "2")
    with pytest.raises(AssertionError, match="--redis-url"), router:
        pass
    assert router._process.wait(30) == 2
    with pytest.raises(ConfigurationError, match="--listen: must be host:port"):
        processes.run([], {"--listen": "nowhere"}, 2, {})


def test_events_reach_who_starts_late_and_broken_ones_are_told(tmp_path: Path, caplog: Any) -> None:
    first, late = Overrides(lambda: None), Overrides(lambda: None)
    Siblings(tmp_path, first)
    for name in ("kept", "ended", "delivered", "ended there"):
        first.put(Override(name, Scope.GLOBAL, reason="r"))
    first.end("ended")
    first.hand_over(next(override for override in first.active() if override.id == "delivered"), 7)
    first.hand_over(next(override for override in first.active() if override.id == "ended there"), 8)
    first.end("ended there", 9)
    (tmp_path / "9-9-9.json").write_text("{")
    Siblings(tmp_path, late).look()
    # Until it has read a store that tells, what the store was given acts.
    assert [override.id for override in late.active()] == ["delivered", "kept"]
    read(late, [], 9, ENDED)
    assert [override.id for override in late.active()] == ["kept"]
    assert "cannot be read" in caplog.text


def test_events_that_say_nothing_any_more_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Overrides(lambda: None), Overrides(lambda: None)
    told, heard = Siblings(tmp_path, first), Siblings(tmp_path, second)

    def both() -> list[str]:
        for each in (told, heard, told, heard):
            each.look()
        files = sorted(path.name for path in tmp_path.iterdir())
        assert set(told._read) | set(heard._read) == set(files), "nothing is remembered of what is gone"
        return files

    for number in range(20):
        first.put(Override("again", Scope.GLOBAL, reason="r"))
        heard.look()
        first.end("again", 0)
        first.put(Override(f"ends-{number}", Scope.GLOBAL, reason="r"))
        first.end(f"ends-{number}", 0)
    first.put(Override("past", Scope.GLOBAL, expire_time=time.time() + 60, reason="r"))
    first.put(Override("stays", Scope.GLOBAL, reason="r"))
    stored = Override("stored", Scope.GLOBAL, reason="r")
    first.put(stored)
    first.hand_over(stored, 5)
    heard.look()
    # The last word of each: an end, too, for who was away when it was told.
    assert len(both()) == 1 + 20 + 3
    assert [each.id for each in second.active()] == ["stored", "past", "stays"]
    monkeypatch.setattr(time, "time", lambda at=time.time: at() + 3 * 3600)
    assert len(both()) == 1
    late = Overrides(lambda: None)
    Siblings(tmp_path, late).look()
    assert [each.id for each in late.active()] == ["stays"]


def test_a_folder_that_is_cleared_away_ends_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    own = Overrides(lambda: None)
    siblings = Siblings(folder, own)
    own.put(Override("k", Scope.GLOBAL, reason="r"))
    shutil.rmtree(folder)
    for _ in range(3):
        siblings.look()
    own.put(Override("l", Scope.GLOBAL, reason="r"))
    assert [each.id for each in own.active()] == ["k", "l"]
    assert caplog.text.count("is not heard") == 1
    assert "are not told of an override" in caplog.text
