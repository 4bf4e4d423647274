from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer
from sparsity.v1 import policy_pb2
from sparsity_cli.console import reported
from sparsity_cli.main import app
from sparsity_router.embedded.state import Process, Running, read_running
from sparsity_router.prompts.corpus import excerpt, technical_text
from sparsity_serving.benchmark import Row, header, judged, markdown, write
from typer.testing import CliRunner

RUNNER = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "hi", "--router", "127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["generate"], 2, "prompt: give it as an argument"),
        (["generate", "hi", "--file", "x"], 2, "prompt: give it as an argument"),
        (["generate", "--file", "/nowhere/x"], 2, "--file: cannot read"),
        (["generate", "hi", "--max-tier", "huge"], 2, "--max-tier: must be one of dense, moderate, aggressive"),
        (["explain", "hi", "--router", "127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["policy", "list", "--router", "127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["policy", "apply", "/nowhere.yaml", "--reason", "x"], 2, "/nowhere.yaml: cannot be read"),
        (["policy", "apply", "x.yaml"], 2, "--reason: is missing"),
        (["policy", "get", "rag", "--router", "127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["policy", "edit", "rag", "--router", "127.0.0.1:1"], 4, "127.0.0.1:1"),
        (["policy", "replay", "/nowhere.yaml"], 2, "/nowhere.yaml: cannot be read"),
        (["policy", "rollout", "start", "rag", "--pause", "1h", "--reason", "x"], 2, "--steps: is missing"),
        (["policy", "rollout", "start", "rag", "--sticky-by", "tenant", "--reason", "x"], 2, "--steps: is missing"),
        (["status", "--state", "/nowhere"], 3, "no embedded service runs here"),
        (["demo", "--state", "/nowhere"], 3, "no embedded service runs here"),
        (["bench", "tiers", "--state", "/nowhere"], 3, "no embedded service runs here"),
        (["up", "--listen", "nonsense"], 2, "--listen: must be host:port"),
        (["up", "--engine", "eco"], 2, "--engine: must be one of sglang, echo, not 'eco'"),
    ],
)
def test_failures_say_what_and_exit_with_their_code(arguments: list[str], code: int, words: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split())
    assert not result.stdout


def test_the_note_of_a_dead_supervisor_is_not_believed(tmp_path: Path) -> None:
    worker = Process("worker-dense", 1, "127.0.0.1:2", "log")
    Running(2**22 + 1, "127.0.0.1:1", "redis://x", "m", {"dense": worker}, 1.0).write(tmp_path)
    result = RUNNER.invoke(app, ["status", "--state", str(tmp_path)])
    assert result.exit_code == 3
    assert "has ended" in " ".join(result.stderr.split())
    (tmp_path / "up.json").write_text("garbage")
    assert RUNNER.invoke(app, ["status", "--state", str(tmp_path)]).exit_code == 3


def test_a_note_survives_its_file(tmp_path: Path) -> None:
    running = Running(os.getpid(), "a:1", "redis://x", "m", {"dense": Process("w", 1, "b:2", "l")}, 2.5)
    running.write(tmp_path)
    assert read_running(tmp_path) == running


def test_nothing_is_measured_of_an_echo(tmp_path: Path) -> None:
    Running(os.getpid(), "a:1", "redis://x", "echo", {}, 2.5, "echo").write(tmp_path)
    result = RUNNER.invoke(app, ["bench", "tiers", "--state", str(tmp_path)])
    assert result.exit_code == 2
    assert "answers by echo: there is nothing to measure" in " ".join(result.stderr.split())


def test_excerpts_wrap_around_and_differ() -> None:
    text = technical_text()
    assert len(text) > 100_000
    assert excerpt(50, len(text) - 10).startswith(text[-10:])
    assert len(excerpt(2 * len(text))) == 2 * len(text)
    assert excerpt(100, 0) != excerpt(100, 1000)


def test_result_files_hold_header_rows_and_misses(tmp_path: Path) -> None:
    rows = [
        Row("speed", "1k", 2.0, "s", "dense", 3.0, 1.5),
        judged(Row("speed", "2k", 2.0, "s", "dense", 2.0, 1.0), "ratio >= 1.3", met=False),
    ]
    head = header("sparsity bench x", {"model": "m"})
    assert {"device", "versions", "date", "command", "model"} <= head.keys()
    write(tmp_path, "x", head, rows)
    document = json.loads((tmp_path / "x.json").read_text())
    assert set(document["rows"][0]) == {
        *("name", "shape", "value", "unit", "baseline"),
        *("baseline_value", "ratio", "goal", "met"),
    }
    table = (tmp_path / "x.md").read_text()
    assert table == markdown("x", document)
    assert "| speed | 2k | 2 s | dense: 2 s | 1 | ratio >= 1.3 | **no** |" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "hi", "--max-new-tokens", "-5"], "sampling.max_new_tokens: cannot be sent"),
        (["generate", "hi", "--max-new-tokens", str(2**32)], "sampling.max_new_tokens: cannot be sent"),
        (["generate", "a \udce9 b"], "prompt: is no text: '\\udce9' at 2"),
        (["generate", "a \udce9 b", "--raw"], "prompt: is no text: '\\udce9' at 2"),
        (["generate", "hi", "--domain", "\udce9"], "context: is no text"),
        (["explain", "hi", "--domain", "\udce9"], "context: is no text"),
        (["outcome", "\udce9", "--metric", "m", "--score", "1"], "'\\udce9': is no text"),
        (["policy", "get", "\udce9"], "'\\udce9': is no text"),
        (["policy", "kill", "--tenant", "\udce9", "--reason", "x"], "'\\udce9': is no text"),
        (["policy", "kill", "--reason", "for \udce9"], "'for \\udce9': is no text: '\\udce9' at 4"),
        (["policy", "kill", "--for", "9" * 20 + "h", "--reason", "x"], "--for: must be a time such as"),
        (
            ["policy", "rollout", "start", "rag", "--steps", "5,100", "--pause", "99999d", "--reason", "x"],
            "--pause: must",
        ),
    ],
)
def test_what_cannot_be_sent_is_told_in_a_line(arguments: list[str], words: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2, result.exception
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_number_that_no_message_takes_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        policy_pb2.RollbackPolicyRequest(domain="rag", to_revision=10**23)
    assert caught.value.exit_code == 2
    assert f"error: {10**23}: is out of range" in capsys.readouterr().err
    with pytest.raises(ValueError, match="another"), reported():
        raise ValueError("another")


@pytest.mark.parametrize("number", ["-5", "0", str(10**23)])
@pytest.mark.parametrize(
    "arguments",
    [
        ["policy", "rollback", "rag", "--reason", "x", "--to-revision"],
        ["policy", "get", "rag", "--revision"],
        ["policy", "diff", "rag", "--revision"],
        ["policy", "history", "rag", "--limit"],
        ["demo", "--new-tokens"],
    ],
)
def test_a_number_out_of_bounds_names_its_option(arguments: list[str], number: str) -> None:
    result = RUNNER.invoke(app, [*arguments, number])
    assert result.exit_code == 2, result.exception
    assert arguments[-1] in result.stderr
