from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import openai
import psutil
import pytest
import yaml
from e2e.conftest import SPARSITY, System, eventually, finish, load
from prometheus_client.parser import text_string_to_metric_families
from promql import TARGET_LABELS, documented, panels, selectors
from sparsity.v1 import inference_pb2, inference_pb2_grpc, worker_pb2_grpc
from sparsity_client.wire import make_request
from sparsity_client.wire.direct import worker_request
from sparsity_router.prompts.corpus import excerpt
from sparsity_rpc.errors import DeadlineError, InvalidRequestError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parent.parent.parent


class Samples(NamedTuple):
    """What /metrics said."""

    families: set[str]
    samples: list[Any]


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return Samples({family.name for family in families}, [sample for family in families for sample in family.samples])


def total(found: Samples, name: str, **labels: str) -> float:
    """Sum over the samples with these labels; there must be one."""
    values = [s.value for s in found.samples if s.name == name and labels.items() <= s.labels.items()]
    assert values, f"no {name} with {labels}"
    return float(sum(values))


def test_a_chat_is_answered_and_explained(system: System) -> None:
    answer = system.json("generate", "What is the capital of France?", "--domain", "support-chat")
    assert "Paris" in answer["text"]
    assert answer["decision"]["tier"] == "TIER_DENSE"
    assert answer["decision"]["reason"] == "REASON_LENGTH_BAND"
    assert answer["usage"]["completion_tokens"] > 0


def test_readmes_call_gets_the_tier_that_readme_says(system: System, tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    text = subprocess.run([sys.executable, "-m", "pydoc", "argparse"], capture_output=True, check=True).stdout
    (tmp_path / "argparse.txt").write_bytes(text[:30_000])
    found = system.json("explain", "--file", str(tmp_path / "argparse.txt"), "--domain", "rag")
    decision = found["decision"]
    tier, reason = decision["tier"].removeprefix("TIER_").lower(), decision["reason"].removeprefix("REASON_")
    count, _, band = decision["explanation"].partition(" ")
    # How long the text is, Python's version decides.
    generated = rf"(?m)^tier {tier}, {reason} \({re.escape(decision['matched_rule'])}\): (\d+) {re.escape(band)}$"
    explained = rf"(?m)^{tier}  {reason}  (\d+) {re.escape(band)}$"
    told = re.findall(generated, readme) + re.findall(explained, readme)
    assert len(told) == 2
    assert all(abs(int(count) - int(own)) < 500 for own in told)
    others = re.search(r"Another tier:\n((?:  .*\n)+)", readme)
    assert others is not None
    assert {line.strip() for line in others[1].splitlines()} < set(found["alternatives"])


def test_openais_client_is_answered_by_the_engine(system: System) -> None:
    with openai.OpenAI(base_url=f"http://{system.http}/v1", api_key="any", timeout=600.0) as client:
        model = client.models.list().data[0].id
        asked: dict[str, Any] = {"model": model, "max_completion_tokens": 16, "temperature": 0}
        asked |= {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        answer = client.chat.completions.create(**asked, metadata={"domain": "support-chat"})
        assert "Paris" in answer.choices[0].message.content
        assert answer.sparsity["tier"] == "dense"
        assert answer.usage.completion_tokens > 0
        text = excerpt(18_000, 30_000)
        stream = client.completions.create(
            model=model, prompt=text, max_tokens=4, stream=True, extra_headers={"x-sparsity-domain": "rag"}
        )
        assert stream.response.headers["x-sparsity-tier"] == "aggressive"
        told = [chunk.sparsity for chunk in stream if hasattr(chunk, "sparsity")]
        assert [each["report"]["tier"] for each in told] == ["aggressive"]
        assert 0.0 < told[0]["report"]["prefill_density"] < 1.0


@pytest.mark.parametrize("door", ["openai", "grpc"])
def test_the_examples_print_what_they_were_answered(system: System, door: str) -> None:
    address = {"openai": f"http://{system.http}/v1", "grpc": system.router}[door]
    script = ROOT / "examples" / f"{door}_client.py"
    result = subprocess.run([sys.executable, str(script), address], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert "Paris" in said["chat"]
    assert said["chat"].lower().endswith("[dense, length_band]")
    assert "Paris" in said["stream"].replace(" | ", "")
    assert said["stream"].count(" | ") > 1
    assert re.fullmatch(r"weather\('.*'\)", said["tool_call"])
    assert re.fullmatch(r"Place\(city='.*', country='.*'\)|{'city': '.*'}", said["json_schema"])
    assert len(re.findall(r"-\d+\.\d\d of 2", said["logprobs"])) >= 4


def test_a_sparse_answer_reports_every_layer_and_a_prefix_hit_repeats_it(system: System) -> None:
    request = make_request(excerpt(22_000, 50_000), domain="rag", max_new_tokens=8)
    with system.client() as client:
        first_text, first = finish(client.generate(request))
        again_text, again = finish(client.generate(request))
    report = first.sparsity
    assert report.backend == "sparsity"
    assert len(report.layers) == 30
    # The profile has thresholds by layer: heads of layer 12 live on sink and window, those of layer 3 look far back.
    assert 0 < report.layers[12].prefill_density < report.layers[3].prefill_density < 1
    assert 0.5 < report.coverage < 1
    assert 0 < report.prefill_density < 1
    assert 0 < report.decode_density < 1
    assert 0 < report.sparse_kernel_calls <= report.kernel_calls
    assert again.usage.cached_tokens > 0.9 * first.usage.prompt_tokens
    assert first_text
    assert again_text


def test_reasoning_that_is_held_dense_decodes_densely(system: System) -> None:
    # The prompt of the test before, for its prefix.
    request = make_request(excerpt(22_000, 50_000), domain="rag", max_new_tokens=8, dense_reasoning=True)
    with system.client() as client:
        _, completion = finish(client.generate(request))
    assert completion.decision.tier == inference_pb2.TIER_AGGRESSIVE
    assert completion.decision.dense_reasoning
    # The model has no markers: its whole answer counts.
    assert completion.sparsity.dense_reasoning_tokens == completion.usage.completion_tokens - 1
    assert completion.sparsity.decode_density == 1
    assert system.json("explain", "hi", "--domain", "reasoning")["decision"]["dense_reasoning"]


def test_the_doctor_proves_every_tier(system: System) -> None:
    (found,) = system.json("worker", "doctor")
    assert found["problem"] == ""
    assert found["backend"].startswith("sparsity, torch kernels, profiles dense, smollm2-135m-moderate@")
    assert set(found["tiers"]) == {"dense", "moderate", "aggressive"}
    assert "density 1.000 prefill" in found["tiers"]["dense"]["request"]
    for tier in ("moderate", "aggressive"):
        assert "measured" in found["tiers"][tier]["request"]
        assert "density 1.000 prefill" not in found["tiers"][tier]["request"]


@pytest.mark.parametrize("tier", ["dense", "aggressive"])
def test_a_cancel_in_prefill_frees_the_slot_in_the_engine(system: System, tier: str) -> None:
    before = load(system, tier).aborted_requests
    start, domain = (100_000, "medical") if tier == "dense" else (90_000, "rag")
    # It takes seconds to read.
    request = make_request(excerpt(22_000, start), domain=domain, max_new_tokens=2000)
    request.sampling.ignore_eos = True
    with system.client() as client:
        stream = client.generate(request)
        threading.Timer(1.0, client.close).start()
        with pytest.raises(Exception, match=r"(?i)cancel|closed"):
            next(stream)
        stream.close()
    eventually(lambda: load(system, tier).aborted_requests > before)
    eventually(lambda: load(system, tier).requests == 0 and load(system, tier).kv_used_tokens == 0)


def test_a_cancel_ends_no_request_whose_id_begins_alike(system: System) -> None:
    def request(name: str) -> inference_pb2.GenerateRequest:
        made = make_request("Count to one hundred.", domain="rag", max_new_tokens=60)
        made.sampling.ignore_eos = True
        made.request_id = name
        return made

    with system.client() as client:
        first, second = client.generate(request("job")), client.generate(request("job.1"))
        next(first)
        next(second)
        first.close()
        _, completion = finish(second)
    assert completion.usage.completion_tokens == 60


def test_a_deadline_frees_the_slot_in_the_engine(system: System) -> None:
    request = make_request("Tell me a story.", domain="rag", max_new_tokens=4000)
    request.sampling.ignore_eos = True
    before = load(system, "dense").aborted_requests
    with system.client() as client, pytest.raises(DeadlineError):
        finish(client.generate(request, timeout=3.0))
    eventually(lambda: load(system, "dense").aborted_requests > before)
    eventually(lambda: load(system, "dense").kv_used_tokens == 0)


def test_greedy_output_equals_transformers(system: System) -> None:
    note = json.loads((system.state / "up.json").read_text())
    command = [sys.executable, "-m", "sparsity_worker.parity", "--model", note["model_path"]]
    command += ["--target", system.worker_address("dense"), "--new-tokens", "24"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    found = json.loads(result.stdout)
    assert len(found) == 20
    assert result.returncode == 0, [one for one in found if not one["equal"]]
    assert sum(one["equal"] for one in found) >= 10


def test_a_policy_edit_acts_on_the_next_request(system: System, tmp_path: Path) -> None:
    prompt = excerpt(6000)
    path = tmp_path / "rag.yaml"
    original = system.cli("policy", "get", "rag").stdout
    document = yaml.safe_load(original)
    assert system.json("explain", prompt, "--domain", "rag")["decision"]["tier"] == "TIER_MODERATE"
    document["bands"] = [{"from_tokens": 0, "tier": "dense"}]
    path.write_text(yaml.safe_dump(document))
    assert "nothing was written" in system.cli("policy", "apply", str(path), "--dry-run").stdout
    assert system.json("explain", prompt, "--domain", "rag")["decision"]["tier"] == "TIER_MODERATE"
    system.cli("policy", "apply", str(path), "--reason", "test")
    assert system.json("explain", prompt, "--domain", "rag")["decision"]["tier"] == "TIER_DENSE"
    system.cli("policy", "apply", str(path), "--reason", "late", "--etag", "old", check=5)
    path.write_text(original)
    system.cli("policy", "apply", str(path), "--reason", "back")
    assert {row["policy"]["domain"] for row in system.json("policy", "list")["policies"]} >= {"rag", "medical"}


def test_the_direct_path_streams_from_the_real_worker_by_a_lease(system: System) -> None:
    made = make_request("What is the capital of France?", domain="support-chat", max_new_tokens=8)
    with system.client() as client:
        relayed, _ = finish(client.generate(made))
        text, completion = finish(client.generate(made, direct=True))
        assert text == relayed
        assert completion.decision.decision_id
        # A worker refuses a lease that was used, whoever brings it.
        route = inference_pb2_grpc.InferenceServiceStub(client.channel).Route(inference_pb2.RouteRequest(request=made))
        with grpc.insecure_channel(route.endpoint) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            assert list(stub.Generate(worker_request(route)))
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(worker_request(route)))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "France" in system.cli("generate", "What is the capital of France?", "--direct").stdout


def test_sparse_answers_are_repeated_on_dense_where_policy_says_so(system: System, tmp_path: Path) -> None:
    original, path = system.cli("policy", "get", "rag").stdout, tmp_path / "rag.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(original) | {"shadow": {"percent": 100}}))
    system.cli("policy", "apply", str(path), "--reason", "test")
    answer = system.json("generate", excerpt(6000, 90_000), "--domain", "rag", "--raw", "--max-new-tokens", "6")
    assert answer["decision"]["tier"] == "TIER_MODERATE"
    name, label = "sparsity_router_shadow_samples_total", {"sparsity_shadow_outcome": "compared"}

    def compared() -> list[float]:
        found = scrape(system.metrics_port).samples
        return [sample.value for sample in found if sample.name == name and label.items() <= sample.labels.items()]

    eventually(lambda: compared() == [1.0])
    # Prompts of this length are read densely at both tiers, in two ways that round differently.
    assert total(scrape(system.metrics_port), "sparsity_router_shadow_agreement_sum", sparsity_domain="rag") > 0
    path.write_text(original)
    system.cli("policy", "apply", str(path), "--reason", "back")


def test_bad_input_is_told_and_what_is_in_flight_goes_on(system: System, tmp_path: Path) -> None:
    with system.client() as client:
        stream = client.generate(make_request("Count to one hundred.", domain="rag", max_new_tokens=100))
        next(stream)
        cases = [
            (make_request(""), "text"),
            (make_request("word " * 9000), "prompt"),
            (make_request("x" * 5_000_000), "text"),
            (make_request([10**6]), "token_ids.ids"),
            (make_request("hi", temperature=99.0), "sampling.temperature"),
            (make_request("hi", max_new_tokens=10**9), "sampling.max_new_tokens"),
        ]
        for request, field in cases:
            with pytest.raises(InvalidRequestError) as caught:
                finish(client.generate(request))
            assert [violation.field for violation in caught.value.violations] == [field]
        _, completion = finish(stream)
        assert completion.finish_reason in (inference_pb2.FINISH_REASON_LENGTH, inference_pb2.FINISH_REASON_STOP)
    binary = tmp_path / "p.bin"
    binary.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in system.cli("generate", "--file", str(binary), check=2).stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text("domain: rag\nrisk: low\nbands:\n- {from_tokens: 0, tier: sparse}\n")
    assert "bad.yaml:4: bands[0].tier" in system.cli("policy", "apply", str(bad), "--reason", "x", check=2).stderr
    system.cli("policy", "get", "astrology", check=3)
    assert "max-tier" in system.cli("generate", "hi", "--max-tier", "huge", check=2).stderr
    system.cli("generate", "hi", "--router", "127.0.0.1:1", check=4)


def test_up_refuses_what_cannot_work_before_it_starts_anything(system: System, tmp_path: Path) -> None:
    def refusal(*arguments: str) -> str:
        state = ["--state", str(tmp_path / "other"), "--metrics-port", "0", "--http", "off"]
        result = subprocess.run(
            [SPARSITY, "up", *state, *arguments], env=system.environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 2
        return result.stderr

    assert "cannot listen" in refusal("--listen", system.router)
    assert "another `sparsity up`" in refusal("--listen", "127.0.0.1:0", "--state", str(system.state))
    assert "host:port" in refusal("--listen", "nonsense")
    taken = refusal("--listen", "127.0.0.1:0", "--metrics-port", str(system.metrics_port))
    assert "--metrics-port: cannot listen" in taken
    assert "--model" in refusal("--listen", "127.0.0.1:0", "--model", str(tmp_path))
    assert "--redis-url" in refusal("--listen", "127.0.0.1:0", "--redis-url", "redis://127.0.0.1:1/0")


def test_metrics_tell_what_was_decided_attended_and_refused(system: System) -> None:
    answer = system.json("generate", excerpt(18_000, 30_000), "--domain", "rag", "--raw", "--max-new-tokens", "3")
    assert answer["decision"]["tier"] == "TIER_AGGRESSIVE"
    system.cli("generate", "hi", "--domain", "x" * 5000, check=2)
    system.cli("explain", "a domain that is to be detected")
    router = scrape(system.metrics_port)
    rag = {"sparsity_domain": "rag", "sparsity_tier": "aggressive"}
    assert total(router, "sparsity_router_decisions_total", **rag, sparsity_reason="LENGTH_BAND") >= 1
    assert total(router, "sparsity_router_policy_violations_total") == 0
    saved, took = (total(router, f"sparsity_attention_flops{kind}_total", **rag) for kind in ("_saved", ""))
    assert saved > took > 0
    assert total(router, "gen_ai_server_time_to_first_token_seconds_count", **rag) >= 1
    assert total(router, "sparsity_rpc_errors_total", rpc_response_status_code="INVALID_ARGUMENT") >= 1
    assert total(router, "sparsity_router_workers", sparsity_worker_state="ready") == 3
    assert total(router, "sparsity_policy_revision") > 0
    worker = scrape(system.metrics_port + 1)
    assert total(worker, "sparsity_tokens_total", sparsity_token_kind="prompt") >= answer["usage"]["prompt_tokens"]
    assert total(worker, "sparsity_worker_kernel_calls_total", sparsity_kernel_kind="sparse") > 0
    density = "sparsity_worker_layer_density"
    middle, count = (total(worker, f"{density}_{part}", sparsity_layers="middle") for part in ("sum", "count"))
    assert 0 < middle < count
    # A metric that is not in the list has no meaning to whoever reads it.
    named = {
        name for samples in (router, worker) for name in samples.families if name.startswith(("sparsity", "gen_ai"))
    }
    assert not named - documented()
    # What nobody serves or labels so would make an empty panel.
    labels: dict[str, set[str]] = {}
    for sample in (*router.samples, *worker.samples):
        labels.setdefault(sample.name, set()).update(sample.labels)
    for dashboard, panel, expression in panels():
        for selector in selectors(expression):
            assert selector.metric in labels, f"{dashboard}: {panel}: no {selector.metric}"
            # Only what failed has an error.
            unknown = selector.labels - labels[selector.metric] - TARGET_LABELS - {"error_type"}
            # A violation has a domain, and there must be none.
            if selector.family != "sparsity_router_policy_violations":
                assert not unknown, f"{dashboard}: {panel}: no label {unknown} of {selector.metric}"


def test_one_worker_proves_every_tier_and_memory_is_bounded(system: System) -> None:
    status = system.json("status")
    (worker,) = status["workers"]
    assert worker["backend"] == "sparsity"
    proved = {row["tier"]: row["probe_density"] for row in worker["tiers"]}
    assert list(proved) == ["TIER_DENSE", "TIER_MODERATE", "TIER_AGGRESSIVE"]
    assert proved["TIER_DENSE"] == 1
    assert 0 < proved["TIER_AGGRESSIVE"] < proved["TIER_MODERATE"] < 1
    assert status["memory_bytes"] < 5 * 2**30


def test_ending_it_leaves_no_process(system: System) -> None:
    processes = psutil.Process(system.process.pid).children(recursive=True)
    assert len(processes) > 4
    system.process.terminate()
    system.process.wait(90)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not (system.state / "up.json").exists()
