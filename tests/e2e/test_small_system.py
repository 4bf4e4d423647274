"""What asks for engines and long prompts, and not for a model that knows anything: this one reads them in a moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from e2e.conftest import System, eventually, finish, load
from sparsity.v1 import inference_pb2
from sparsity_cli.requests.demo import CASES, _fitting, _run
from sparsity_client.wire import make_request
from sparsity_router.embedded.state import read_running
from sparsity_router.prompts.corpus import excerpt
from sparsity_rpc import semconv
from sparsity_serving import telemetry
from support.telemetry.otlp import attributes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_one_trace_from_client_to_engine(small: System) -> None:
    answer = small.json("generate", excerpt(5_000), "--domain", "rag", "--max-new-tokens", "4", "--raw")
    trace = small.receiver.trace_with("router.generate", telemetry.DECISION_ID, answer["decision"]["decision_id"])
    parents = {
        "router.generate": "client.generate",
        "router.classify": "router.generate",
        "router.decide": "router.generate",
        "router.dispatch": "router.generate",
        "worker.generate": "router.dispatch",
        "engine.prefill": "worker.generate",
        "engine.decode": "worker.generate",
    }
    for name, parent in parents.items():
        assert trace[name][1].parent_span_id == trace[parent][1].span_id, name
    # SGLang's own spans come from the worker's process and from its scheduler's.
    services = {"sparsity-cli", "sparsity-router", "sparsity-worker", "sglang"}
    assert {service for service, _ in trace.values()} == services
    assert trace["prefill_forward"][0] == "sglang"
    routed = attributes(trace["router.generate"][1])
    assert routed[telemetry.TIER] == "aggressive"
    assert routed[telemetry.REASON] == "LENGTH_BAND"
    assert routed[telemetry.POLICY_REVISION] == int(answer["decision"]["policy_revision"])
    worked = attributes(trace["worker.generate"][1])
    assert worked[semconv.GEN_AI_USAGE_INPUT_TOKENS] == answer["usage"]["prompt_tokens"]
    assert 0 < worked[telemetry.PREFILL_DENSITY] < 1
    assert "Python" not in str(trace), "prompt text does not belong into traces"


@pytest.mark.parametrize("tier", ["dense", "aggressive"])
def test_a_cancel_in_decode_frees_the_slot_in_the_engine(small: System, tier: str) -> None:
    before = load(small, tier).aborted_requests
    # Of the aggressive tier it must be long.
    text, domain = (excerpt(2_000, 90_000), "medical") if tier == "dense" else (excerpt(5_000, 110_000), "rag")
    request = make_request(text, domain=domain, max_new_tokens=2000)
    request.sampling.ignore_eos = True
    with small.client() as client:
        stream = client.generate(request)
        next(stream)
        eventually(lambda: load(small, tier).kv_used_tokens > 0)
        stream.close()
    eventually(lambda: load(small, tier).aborted_requests > before)
    eventually(lambda: load(small, tier).requests == 0 and load(small, tier).kv_used_tokens == 0)


def test_a_guard_halts_a_rollout_by_what_real_engines_report(small: System, tmp_path: Path) -> None:
    original = small.cli("policy", "get", "code").stdout
    document = yaml.safe_load(original)
    # No sparse answer keeps all of the softmax mass, so this guard must break.
    document["guards"] = {"min_coverage": 0.99999}
    document["rollout"] = {"steps": [100]}
    path = tmp_path / "code.yaml"
    path.write_text(yaml.safe_dump(document))
    small.cli("policy", "apply", str(path), "--reason", "test")
    request = make_request(excerpt(5_000), domain="code", task="search", max_new_tokens=2)
    with small.client() as client:
        for _ in range(20):
            # After the first one the prefix cache holds the prompt, and decoding alone is sparse.
            _, completion = finish(client.generate(request))
            assert completion.decision.tier == inference_pb2.TIER_AGGRESSIVE
        deadline = time.monotonic() + 10
        while not small.json("policy", "get", "code")["policy"]["rollout"].get("halted"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        _, completion = finish(client.generate(request))
        assert completion.decision.tier == inference_pb2.TIER_DENSE
        assert completion.decision.reason == inference_pb2.REASON_ROLLOUT_SPLIT
        client.report_outcome(completion.decision.decision_id, 0.5, "exact_match")
    newest = small.json("policy", "history", "code", "--limit", "1")[0]
    assert newest["actor"] == "guard"
    assert "is below the guard" in newest["reason"]
    path.write_text(original)
    found = small.json("policy", "replay", str(path), "--since", "10m")["summary"]
    assert {(c["before"], c["after"]) for c in found["changes"]} >= {("TIER_DENSE", "TIER_AGGRESSIVE")}
    measured = {density["tier"]: int(density["requests"]) for density in found["densities"]}
    assert measured["TIER_AGGRESSIVE"] >= 20
    small.cli("policy", "apply", str(path), "--reason", "back")


def test_the_killed_worker_returns(small: System) -> None:
    """The demo's case of it; `test_pools.py` has the others."""
    (case,) = [case for case in CASES if case.kill]
    note = read_running(small.state)
    # Held still, it is in the midst of the prompt when it ends, however quick the machine.
    os.kill(note.workers["aggressive"].pid, signal.SIGSTOP)
    with small.client() as client:
        killed = _run(client, _fitting(case, note), 8, note)
    assert killed.ok, killed
    # There is nobody else: refused while it is away, and never answered in another way than policy says.
    assert "can be reached" in killed.refused
    assert (killed.tier, killed.reason) == ("aggressive", "LENGTH_BAND")
    ready = {"state": "WORKER_STATE_READY"}
    eventually(lambda: all(ready.items() <= row.items() for row in small.json("status")["workers"]), 300.0)

    def reason() -> str:
        answer = small.json("generate", excerpt(5_000, 200_000), "--domain", "rag", "--raw", "--max-new-tokens", "2")
        return str(answer["decision"]["reason"])

    # The router hears of the worker's return a moment after the worker serves.
    eventually(lambda: reason() == "REASON_LENGTH_BAND")
