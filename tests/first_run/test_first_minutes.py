"""What README promises of the first ten minutes: the whole service by one command, without torch or a model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import client_alone
import openai
import psutil
import pytest
import redis
import yaml
from openai.types.chat import ChatCompletionMessageParam
from sparsity_policies.storage.scripts import OVERRIDES
from sparsity_router.embedded.state import read_running
from support.routers.embedded import Embedded, embedded

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
HEAVY = ("torch", "sglang", "transformers", "triton")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """The service after its tour, where nothing heavy can be imported, as in the light installation."""
    absent = tmp_path_factory.mktemp("absent")
    for name in HEAVY:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('the light installation has no {name}')\n")
    state = tmp_path_factory.mktemp("state")
    with embedded(state, "--engine", "echo", "--tour", seconds=SECONDS, PYTHONPATH=str(absent)) as running:
        eventually_said(running, "tour: ended")
        yield running


def eventually_said(service: Embedded, words: str) -> None:
    deadline = time.monotonic() + SECONDS
    while words not in service.said():
        assert time.monotonic() < deadline, service.said()
        time.sleep(0.2)


def prompt_file(folder: Path, characters: int) -> str:
    path = folder / "prompt.txt"
    path.write_text("All happy families are alike. " * (characters // 30))
    return str(path)


def test_a_decision_is_explained_and_an_edit_changes_the_next(tmp_path_factory: pytest.TempPathFactory) -> None:
    state, started = tmp_path_factory.mktemp("fresh"), time.monotonic()
    asked = ("explain", "--file", prompt_file(state, 6000), "--domain", "rag")
    with embedded(state, "--engine", "echo", seconds=SECONDS) as service:
        before = service.json(*asked)
        assert before["decision"]["tier"] == "TIER_AGGRESSIVE"
        assert before["decision"]["reason"] == "REASON_LENGTH_BAND"
        assert "in domain medical: dense" in before["alternatives"]
        draft = state / "rag.yaml"
        document = yaml.safe_load(service.cli("policy", "get", "rag").stdout)
        draft.write_text(yaml.safe_dump(document | {"bands": [{"from_tokens": 0, "tier": "dense"}]}))
        service.cli("policy", "apply", str(draft), "--reason", "a first edit")
        after = service.json(*asked)
        assert after["decision"]["tier"] == "TIER_DENSE"
        assert int(after["decision"]["policy_revision"]) > int(before["decision"]["policy_revision"])
        answer = service.json("generate", *asked[1:], "--max-new-tokens", "16")
        assert answer["decision"]["tier"] == "TIER_DENSE"
        assert answer["worker_id"] == "echo-shared"
    assert time.monotonic() - started < SECONDS


def test_the_tour_shows_routing_an_explanation_and_a_change_of_policy(service: Embedded) -> None:
    said = service.said()
    assert "10 of 10 requests got the tier and reason that policy says" in said
    before, _, after = said.partition("domain rag is dense at most until")
    assert re.search(r"aggressive  LENGTH_BAND  \d+ prompt tokens lie in the band from 4096", before)
    assert "dense  KILL_SWITCH  override tour caps at dense: a look around" in after
    assert service.json("policy", "overrides") == []


def test_no_process_of_it_has_loaded_torch(service: Embedded) -> None:
    service.cli("generate", "hello", "--domain", "rag")
    supervisor = psutil.Process(service.process.pid)
    # A worker, the router, its classifier, Valkey.
    family = [supervisor, *supervisor.children(recursive=True)]
    assert len(family) >= 5
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in family]
    assert sum("/grpc/" in loaded for loaded in maps) >= 3
    for name in HEAVY:
        assert not any(f"/{name}/" in loaded for loaded in maps), name


def test_an_answer_is_an_echo_and_says_that_nothing_was_measured(service: Embedded, tmp_path: Path) -> None:
    sparse = ("generate", "--file", prompt_file(tmp_path, 6000), "--domain", "rag", "--max-new-tokens", "12")
    shown = service.cli(*sparse)
    assert shown.stdout.startswith("echo: All h")
    assert "worker echo-shared, an echo: no model ran, so nothing was attended" in shown.stderr
    answer = service.json(*sparse)
    assert answer["decision"]["tier"] == "TIER_AGGRESSIVE"
    assert "sparsity" not in answer
    (worker,) = service.json("status")["workers"]
    assert {(row["tier"], row["profile"]) for row in worker["tiers"]} == {
        (f"TIER_{tier}", "echo") for tier in ("DENSE", "MODERATE", "AGGRESSIVE")
    }
    (doctor,) = json.loads(service.cli("worker", "doctor", "--json", check=4).stdout)
    problems = {tier: found["problem"] for tier, found in doctor["tiers"].items()}
    assert set(problems) == {"dense", "moderate", "aggressive"}
    assert all("nothing is measured" in problem for problem in problems.values())


def test_explain_counts_what_generate_sends(service: Embedded, tmp_path: Path) -> None:
    asked = ("--file", prompt_file(tmp_path, 3000), "--domain", "rag")
    for raw in ((), ("--raw",)):
        explained = service.json("explain", *asked, *raw)["signals"]
        answered = service.json("generate", *asked, *raw, "--max-new-tokens", "4")
        assert explained["min_tokens"] == explained["max_tokens"] == answered["usage"]["prompt_tokens"]


def table(shown: str) -> list[str]:
    """The demo's lines, each of which must say that policy held."""
    rows = shown.splitlines()
    assert rows[0].split()[:3] == ["request", "tokens", "tier"]
    assert len(rows) == 12
    assert all(row.endswith("as policy says") for row in rows[1:])
    return rows[1:]


def test_the_demo_finds_policy_held_and_the_killed_worker_serves_again(service: Embedded) -> None:
    shown = service.cli("demo", "--new-tokens", "8")
    last = table(shown.stdout)[-1]
    assert "LENGTH_BAND" in last
    assert "while nobody served" in last
    assert "11 of 11 requests" in shown.stderr
    assert "no density, no coverage: an echo" in shown.stderr
    eventually_said(service, "echo-shared serves again")


def test_with_pools_another_tier_serves_for_the_killed_worker(tmp_path: Path) -> None:
    with embedded(tmp_path, "--engine", "echo", "--pools", seconds=SECONDS) as service:
        workers = {row["worker_id"]: row["tier"] for row in service.json("status")["workers"]}
        assert workers == {f"echo-{tier}": f"TIER_{tier.upper()}" for tier in ("dense", "moderate", "aggressive")}
        assert "TIER_UNAVAILABLE" in table(service.cli("demo", "--new-tokens", "8").stdout)[-1]
        eventually_said(service, "echo-aggressive serves again")


def examples(page: str, router: str) -> list[str]:
    """The Python examples of a page that use the client, for the router of a test."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    found = [block for block in blocks if "sparsity_client" in block]
    assert all("127.0.0.1:7000" in block for block in found)
    return [block.replace("127.0.0.1:7000", router) for block in found]


def test_the_client_alone_is_small_and_the_example_of_the_readme_prints_an_answer(
    service: Embedded, tmp_path: Path
) -> None:
    alone = client_alone.install(tmp_path / "alone")
    assert "sparsity-client 0.1.0" in alone.packages
    assert len(alone.packages) <= 10, alone.packages
    assert alone.megabytes <= 40
    (example,) = examples("README.md", service.router)
    answer, explanation = ran(alone.python, example, tmp_path)
    assert answer == "echo: What is the capital of France?"
    assert "prompt tokens lie in the band from 0" in explanation
    # The one between them takes a model, which an echo has none of.
    asked, _, refused = examples("docs/clients.md", service.router)
    answer, summary = ran(alone.python, asked, tmp_path)
    assert re.fullmatch(r"echo: What is the capital of France\? dense LENGTH_BAND \d+", answer)
    assert summary == "echo: Summarize this."
    assert ran(alone.python, refused, tmp_path) == [
        "INVALID_ARGUMENT INVALID_REQUEST priority must be in [0, 9], not 12"
    ]


def ran(python: Path, code: str, folder: Path) -> list[str]:
    """What code prints; isolated, so that nothing of the clone can be imported."""
    shown = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.splitlines()


def test_openais_own_client_is_answered_at_the_address_that_is_said(service: Embedded) -> None:
    (found,) = re.findall(r"base_url (http://\S+/v1), model (\S+), any key", service.said())
    url, model = found
    assert url == f"http://{service.http}/v1"
    with openai.OpenAI(base_url=url, api_key="any") as client:
        assert [each.id for each in client.models.list()] == [model]
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me of families."}]
        stream = client.chat.completions.create(
            model=model, messages=asked, stream=True, max_completion_tokens=12, metadata={"domain": "rag"}
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.startswith("echo: ")
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["sparsity"]["unreported"].startswith("an echo")


def test_a_store_that_is_killed_serves_again_with_what_it_held(service: Embedded) -> None:
    first = str(service.json("policy", "history", "rag")[-1]["revision"])
    service.cli("policy", "kill", "--id", "kept", "--tenant", "acme", "--reason", "test")
    running = read_running(service.state)
    assert running is not None
    with redis.Redis.from_url(running.redis_url) as store:
        os.kill(store.info("server")["process_id"], signal.SIGKILL)
        eventually_said(service, "Valkey serves again")
        assert store.hexists(OVERRIDES, "kept")
    deadline = time.monotonic() + SECONDS
    edit = ("policy", "rollback", "rag", "--to-revision", first, "--reason", "test")
    while service.cli(*edit, check=None).returncode == 4:
        # The router has yet to reach it again.
        assert time.monotonic() < deadline, service.said()
    assert service.json("policy", "history", "rag")[0]["reason"].startswith("rollback")
