"""`sparsity policy` against a router in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from sparsity_cli.main import app
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import Reason, Signals, Tier
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.storage.store import PolicyStore
from sparsity_serving.access.access import key_digest
from support.routers.router_process import RouterProcess
from support.stores.valkey import Valkey
from typer.testing import CliRunner

RUNNER = CliRunner()
POLICIES = {policy.domain: policy for policy in shipped_policies("small-context")}


class Service:
    """A router, its store, and the command line against it."""

    def __init__(self, router: RouterProcess, server: Valkey) -> None:
        self.router = router
        self.server = server

    def run(self, *arguments: str, code: int = 0, **environment: str) -> Result:
        result = RUNNER.invoke(app, list(arguments), env={"SPARSITY_ROUTER": self.router.address} | environment)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", **options).stdout)

    def reset(self) -> None:
        """Every policy as shipped, no override, no rollout."""
        folder = self.router.log.parent / "shipped"
        folder.mkdir(exist_ok=True)
        for policy in POLICIES.values():
            (folder / f"{policy.domain}.yaml").write_text(dump_yaml(policy))
        self.run("policy", "import", str(folder), "--prune", "--yes", "--reason", "reset")
        self.run("policy", "unkill", "--all")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("router")
    with Valkey() as server, RouterProcess(folder, "--redis-url", server.url, "--band-set", "small-context") as router:
        yield Service(router, server)


@pytest.fixture
def service(running: Service) -> Service:
    running.reset()
    return running


def editor(folder: Path, body: str) -> str:
    """An $EDITOR that runs `body` with the file's text in `text`, and saves what it leaves there."""
    script = folder / "editor.py"
    script.write_text(
        "import pathlib, sys\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n"
        f"count = pathlib.Path({str(folder / 'count')!r})\n"
        "times = int(count.read_text()) + 1 if count.exists() else 1\ncount.write_text(str(times))\n"
        f"{textwrap.dedent(body)}\npath.write_text(text)\n"
    )
    return f"{sys.executable} {script}"


def test_get_list_and_what_they_print_for_programs(service: Service) -> None:
    result = service.run("policy", "get", "rag")
    assert yaml.safe_load(result.stdout)["domain"] == "rag"
    assert "revision" in result.stderr
    assert [p["policy"]["domain"] for p in service.json("policy", "list")["policies"]] == sorted(POLICIES)
    assert "does not exist" in service.run("policy", "get", "astrology", code=3).stderr
    assert "\x1b" not in service.run("policy", "list").stdout


def test_apply_dry_run_then_apply(service: Service, tmp_path: Path) -> None:
    draft = tmp_path / "rag.yaml"
    draft.write_text(dump_yaml(POLICIES["rag"]).replace("owner: search", "owner: you"))
    assert "nothing was written" in service.run("policy", "apply", str(draft), "--dry-run").stdout
    assert "--reason: is missing" in service.run("policy", "apply", str(draft), code=2).stderr
    before = service.json("policy", "get", "rag")
    service.run("policy", "apply", str(draft), "--reason", "mine", "--etag", before["etag"])
    assert service.json("policy", "get", "rag")["policy"]["owner"] == "you"
    result = service.run("policy", "apply", str(draft), "--reason", "late", "--etag", before["etag"], code=5)
    assert "read it and try again" in " ".join(result.stderr.split()) or "is in the store, not" in result.stderr


def test_lint_tells_every_mistake_of_every_file_without_a_router(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("domain: a\nrisk: huge\nbands: []\n")
    (tmp_path / "b.yaml").write_text("domain: b\nrisk: low\nbands: [{from_tokens: 0, tier: dense}]\n")
    (tmp_path / "c.yaml").write_text("domain: b\nrisk: low\nbands: [{from_tokens: 0, tier: dense}]\n")
    result = RUNNER.invoke(app, ["policy", "lint", str(tmp_path), str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    words = " ".join(result.stderr.split())
    for mistake in ("a.yaml:2: risk: must be one of low", "b.yaml too; keep one", "none.yaml: cannot be read"):
        assert mistake in words
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "c.yaml").unlink()
    result = RUNNER.invoke(app, ["policy", "lint", str(tmp_path), "--json"])
    assert json.loads(result.stdout) == [{"file": str(tmp_path / "b.yaml"), "domain": "b"}]
    (tmp_path / "empty").mkdir()
    assert RUNNER.invoke(app, ["policy", "lint", str(tmp_path / "empty")]).exit_code == 2


def test_diff_exits_with_one_when_files_and_router_differ(service: Service, tmp_path: Path) -> None:
    service.run("policy", "export", str(tmp_path / "out"))
    assert service.run("policy", "diff", str(tmp_path / "out")).stdout == ""
    file = tmp_path / "out" / "rag.yaml"
    file.write_text(file.read_text().replace("owner: search", "owner: you"))
    (tmp_path / "out" / "code.yaml").unlink()
    result = service.run("policy", "diff", str(tmp_path / "out"), code=1)
    assert "-owner: search\n+owner: you" in result.stdout
    assert "--- served code" in result.stdout
    found = service.json("policy", "diff", str(file), code=1)
    assert (found["differs"], list(found["domains"])) == (True, ["rag"])
    revision = service.json("policy", "get", "rag")["revision"]
    service.run("policy", "apply", str(file), "--reason", "r")
    assert "+owner: you" in service.run("policy", "diff", "rag", "--revision", str(revision), code=1).stdout
    assert "has no revision 1" in service.run("policy", "diff", "rag", "--revision", "100000", code=3).stderr


def test_an_edit_in_the_editor(service: Service, tmp_path: Path) -> None:
    command = editor(tmp_path, "text = text.replace('owner: search', 'owner: you')")
    result = service.run("policy", "edit", "rag", "--reason", "new owner", EDITOR=command)
    assert "+owner: you" in result.stderr
    stored = service.json("policy", "get", "rag")
    assert (stored["policy"]["owner"], stored["reason"]) == ("you", "new owner")
    # Saving it as it was writes nothing.
    result = service.run("policy", "edit", "rag", EDITOR=editor(tmp_path, "pass"))
    assert "nothing changed" in result.stderr
    assert service.json("policy", "get", "rag")["revision"] == stored["revision"]


def test_a_refused_edit_is_opened_again_with_the_mistakes(service: Service, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    command = editor(
        tmp_path,
        f"""
        if times == 1:
            text = text.replace("tier: moderate", "tier: sparse").replace("risk: low", "risk: none")
        else:
            pathlib.Path({str(seen)!r}).write_text(text)
            text = text.replace("tier: sparse", "tier: dense").replace("risk: none", "risk: elevated")
        """,
    )
    service.run("policy", "edit", "rag", "--reason", "r", EDITOR=command)
    told = seen.read_text()
    assert told.startswith("# Refused, nothing was written:")
    assert "bands[1].tier: must be one of dense, moderate, aggressive, not 'sparse'" in told
    assert "risk: must be one of low, elevated, high, not 'none'" in told
    assert "tier: sparse" in told
    assert service.json("policy", "get", "rag")["policy"]["risk"] == "RISK_ELEVATED"


def test_an_edit_that_is_not_mended_is_kept_in_a_file(service: Service, tmp_path: Path) -> None:
    command = editor(tmp_path, "text = text.replace('risk: low', 'risk: none')")
    result = service.run("policy", "edit", "rag", EDITOR=command, code=2)
    kept = Path(" ".join(result.stderr.split()).partition("error: ")[2].partition(":")[0])
    assert "risk: none" in kept.read_text()
    kept.unlink()
    assert (tmp_path / "count").read_text() == "2"
    command = editor(tmp_path, "text = text.replace('domain: rag', 'domain: other')")
    assert "must stay rag" in service.run("policy", "edit", "rag", EDITOR=command, code=2).stderr


def test_of_two_editors_one_gets_a_three_way_difference_and_loses_nothing(service: Service, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    other = tmp_path / "theirs" / "rag.yaml"
    other.write_text(dump_yaml(POLICIES["rag"]).replace("owner: search", "owner: them"))
    command = editor(
        tmp_path,
        f"""
        import subprocess
        code = "from sparsity_cli.main import main; main()"
        command = [{sys.executable!r}, "-c", code, "policy", "apply", {str(other)!r}, "--reason", "theirs"]
        subprocess.run(command, check=True, capture_output=True)
        text = text.replace("risk: low", "risk: elevated")
        """,
    )
    result = service.run("policy", "edit", "rag", EDITOR=command, code=5)
    words = result.stderr
    assert "+++ in the store now (theirs)" in words
    assert "+++ your edit (yours)" in words
    assert "+owner: them" in words
    assert "+risk: elevated" in words
    kept = Path(" ".join(words.split()).partition("your edit is in ")[2].partition(";")[0])
    assert "risk: elevated" in kept.read_text()
    # The remedy that was told works.
    etag = words.partition("--etag ")[2].split()[0]
    service.run("policy", "apply", str(kept), "--etag", etag, "--reason", "mended")
    assert service.json("policy", "get", "rag")["policy"]["risk"] == "RISK_ELEVATED"
    kept.unlink()


def test_an_editor_that_cannot_be_run(service: Service) -> None:
    result = service.run("policy", "edit", "rag", EDITOR="/nowhere/editor", VISUAL="", code=2)
    assert "set it to your editor" in " ".join(result.stderr.split())
    assert "nothing was written" in service.run("policy", "edit", "rag", EDITOR="false", code=2).stderr


def test_history_rollback_and_delete(service: Service, tmp_path: Path) -> None:
    first = service.json("policy", "get", "rag")["revision"]
    draft = tmp_path / "rag.yaml"
    draft.write_text(dump_yaml(POLICIES["rag"]).replace("owner: search", "owner: you"))
    service.run("policy", "apply", str(draft), "--reason", "second")
    assert "second" in service.run("policy", "history", "rag").stdout
    assert [item["reason"] for item in service.json("policy", "history", "rag", "--limit", "1")] == ["second"]
    service.run("policy", "rollback", "rag", "--to-revision", str(first), "--reason", "undo")
    assert service.json("policy", "get", "rag")["policy"]["owner"] == "search"
    assert "--yes: is missing" in service.run("policy", "delete", "rag", "--reason", "gone", code=2).stderr
    result = service.run("policy", "delete", "rag", "--reason", "gone", "--yes")
    command = result.stdout.partition("back with: sparsity ")[2].split()
    service.run("policy", "get", "rag", code=3)
    assert "deleted: gone" in service.run("policy", "history", "rag").stdout
    service.run(*command, "--reason", "back")
    assert service.json("policy", "get", "rag", "--revision", str(first))["policy"]["owner"] == "search"


def test_a_rollout_from_the_command_line(service: Service) -> None:
    result = service.run("policy", "rollout", "start", "rag", "--steps", "5,50,100", "--reason", "new tiers")
    assert "rag: 5 percent active; step 1 of 3 (5, 50, 100), by session; the others get dense at most" in result.stdout
    assert "--reason: is missing" in service.run("policy", "rollout", "pause", "rag", code=2).stderr
    service.run("policy", "rollout", "pause", "rag", "--reason", "r")
    result = service.run("policy", "rollout", "promote", "rag", "--reason", "r", code=2)
    assert "resume it first" in " ".join(result.stderr.split())
    service.run("policy", "rollout", "resume", "rag", "--reason", "r")
    assert "50 percent active" in service.run("policy", "rollout", "promote", "rag", "--reason", "r").stdout
    assert "0 percent halted, aborted" in service.run("policy", "rollout", "abort", "rag", "--reason", "r").stdout
    assert service.json("policy", "rollout", "status", "rag")["policy"]["rollout"]["halted"]
    assert "no rollout" in service.run("policy", "rollout", "status", "code").stdout
    for wrong, words in (("5,x", "--steps: must be percentages"), ("5,500", "--steps: must be percentages"),
                         ("50,5,100", "rollout.steps: must be ascending")):  # fmt: skip
        result = service.run("policy", "rollout", "start", "rag", "--steps", wrong, "--reason", "r", code=2)
        assert words in " ".join(result.stderr.split())
    pause = ("--pause", "10m", "--held-back", "moderate", "--sticky-by", "tenant")
    service.run("policy", "rollout", "start", "rag", "--steps", "5,50,100", *pause, "--reason", "r")
    rollout = service.json("policy", "get", "rag")["policy"]["rollout"]
    assert (rollout["pauses"], rollout["held_back"], rollout["sticky_by"]) == ([600, 600], "TIER_MODERATE", "tenant")
    # What the next one does not say stays as it was.
    service.run("policy", "rollout", "start", "rag", "--steps", "10,100", "--reason", "r")
    rollout = service.json("policy", "get", "rag")["policy"]["rollout"]
    assert (rollout["steps"], rollout["held_back"], rollout["sticky_by"]) == ([10, 100], "TIER_MODERATE", "tenant")


def test_the_kill_switch_from_the_command_line(service: Service) -> None:
    assert "--reason: is missing" in service.run("policy", "kill", code=2).stderr
    result = service.run("policy", "kill", "--tier", "aggressive", "--for", "30m", "--reason", "incident 7")
    assert result.stdout.startswith("tier aggressive is dense at most until ")
    found = service.json("policy", "overrides")
    assert [(o["scope"], o["target"], o["reason"]) for o in found] == [
        ("OVERRIDE_SCOPE_TIER", "aggressive", "incident 7")
    ]
    service.run("policy", "unkill", found[0]["id"])
    assert service.json("policy", "overrides") == []
    assert "does not exist" in service.run("policy", "unkill", found[0]["id"], code=3).stderr
    assert "--domain: give one of" in service.run("policy", "kill", "--tier", "moderate", "--tenant", "t",
                                                  "--reason", "r", code=2).stderr  # fmt: skip
    assert "--for: must be a time" in service.run("policy", "kill", "--for", "soon", "--reason", "r", code=2).stderr
    refused = service.run("policy", "kill", "--reason", "r", "--id", "guard-rag", code=2).stderr
    assert "override.id: begins with guard-" in refused
    service.run("policy", "kill", "--reason", "r", "--id", "mine")
    steps = service.json("policy", "explain", "hello", "--domain", "rag")["steps"]
    assert "override mine caps at dense: r" in [step["detail"] for step in steps]
    assert "mine: ended" in service.run("policy", "unkill", "--all").stdout


def test_the_kill_switch_by_signal(service: Service) -> None:
    service.router.signal(signal.SIGUSR1)
    deadline = time.monotonic() + 5
    while "signal" not in service.run("policy", "overrides").stdout:
        assert time.monotonic() < deadline
    service.router.signal(signal.SIGUSR2)
    while "signal" in service.run("policy", "overrides").stdout:
        assert time.monotonic() < deadline


def test_simulate_and_replay(service: Service, tmp_path: Path) -> None:
    draft = tmp_path / "rag.yaml"
    draft.write_text("domain: rag\nrisk: low\nbands:\n- {from_tokens: 0, tier: dense}\n")
    result = service.run("policy", "simulate", str(draft), "--tokens", "100,2000,8000")
    assert [line.split()[:4] for line in result.stdout.splitlines()[1:4]] == [
        ["100", "rag", "dense", "dense"],
        ["2000", "rag", "moderate", "dense"],
        ["8000", "rag", "aggressive", "dense"],
    ]
    assert "high-risk or flagged requests whose tier changes: 0" in result.stdout
    wrong = service.run("policy", "simulate", str(draft), "--tokens", "100", "--model", "gpt", code=2)
    assert "signals[0].model: 'gpt' is not served here" in " ".join(wrong.stderr.split())
    lines = tmp_path / "signals.jsonl"
    lines.write_text('{"min_tokens": 8000, "max_tokens": 8000, "domain": "rag", "flags": ["abuse"]}\n')
    found = service.json("policy", "simulate", str(draft), "--signals", str(lines))
    assert found["decisions"][0]["before"]["reason"] == "REASON_FLAGGED"
    lines.write_text('{"tokens": 1}\n')
    wrong = service.run("policy", "simulate", str(draft), "--signals", str(lines), code=2)
    assert "signals.jsonl:1: is not a Signals message" in " ".join(wrong.stderr.split())
    assert "--tokens" in service.run("policy", "simulate", str(draft), code=2).stderr

    async def log(count: int) -> None:
        store = PolicyStore(service.server.url)
        signals = Signals(8000, 8000, domain="rag")
        entry = Entry(time.time(), "d", signals, "rag", 1, Tier.AGGRESSIVE, Reason.LENGTH_BAND,
                      served_tier=Tier.AGGRESSIVE, prefill_density=0.15, decode_density=0.2, new_tokens=50)  # fmt: skip
        await DecisionLog(store.redis).append([entry] * count)
        await store.close()

    assert "nothing of the last 1h" in service.run("policy", "replay", str(draft)).stderr
    assert "nothing of the last 1h" in service.run("savings").stderr
    asyncio.run(log(40))
    result = service.run("policy", "replay", str(draft), "--since", "10m")
    assert "40 requests from" in result.stdout
    assert "aggressive 0.15/0.20 (40)" in result.stdout
    summary = service.json("policy", "replay", str(draft))["summary"]
    assert summary["changes"] == [{"before": "TIER_AGGRESSIVE", "after": "TIER_DENSE", "requests": "40"}]
    assert summary["after"]["flops"] > 5 * summary["before"]["flops"]
    result = service.run("savings", "--gpu-price", "3600", "--gpu-tflops", "0.001", "--gpu-bandwidth", "1")
    assert "40 logged requests from" in result.stdout
    cells = result.stdout.splitlines()[1].split()
    assert cells[:7] == ["rag", "40", "320000", "+", "2000", "aggressive", "40"]
    row = service.json("savings", "--gpu-price", "3600", "--gpu-tflops", "0.001", "--gpu-bandwidth", "1")["domains"][0]
    assert row["attention"]["flops"] == pytest.approx(0.15 * row["dense"]["flops"], rel=0.01)
    assert row["attention"]["kv_bytes"] == pytest.approx(0.2 * row["dense"]["kv_bytes"])
    saved = {name: row["dense"][name] - row["attention"][name] for name in ("flops", "kv_bytes")}
    assert row["gpu_seconds_saved"] == pytest.approx(saved["flops"] / 1e9 + saved["kv_bytes"] / 1e12)
    assert row["money_saved"] == pytest.approx(row["gpu_seconds_saved"])
    for option, value in (("--since", "soon"), ("--gpu-tflops", "0"), ("--gpu-bandwidth", "-1"), ("--gpu-price", "-1")):
        assert option in service.run("savings", option, value, code=2).stderr


def test_export_then_import_writes_only_what_differs(service: Service, tmp_path: Path) -> None:
    service.run("policy", "export", str(tmp_path))
    assert "the store says what the files say" in service.run("policy", "import", str(tmp_path)).stderr
    (tmp_path / "rag.yaml").write_text(dump_yaml(POLICIES["rag"]).replace("owner: search", "owner: you"))
    (tmp_path / "code.yaml").unlink()
    found = service.json("policy", "import", str(tmp_path), "--prune", "--dry-run")
    assert found == {"written": ["rag"], "deleted": ["code"], "dry_run": True}
    assert "--yes" in service.run("policy", "import", str(tmp_path), "--prune", "--reason", "r", code=2).stderr
    service.run("policy", "import", str(tmp_path), "--prune", "--reason", "r", "--yes")
    assert service.json("policy", "get", "rag")["policy"]["owner"] == "you"
    service.run("policy", "get", "code", code=3)


def test_audit_shows_what_was_called(service: Service) -> None:
    service.run("policy", "get", "nothing-of-the-kind", code=3)
    deadline = time.monotonic() + 5
    while True:
        events = service.json("policy", "audit", "--limit", "50")
        told = [(e["method"], e["target"], e["status"]) for e in events]
        if ("GetPolicy", "nothing-of-the-kind", "NOT_FOUND") in told:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert told[0][0] != ("PutPolicy", "GetPolicy")
    assert "nothing-of-the-kind" in service.run("policy", "audit", "--limit", "150").stdout


def test_keys(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["policy", "new-key", "ann", "--role", "editor", "--domain", "rag", "--json"])
    made = json.loads(result.stdout)
    assert made["entry"]["key_sha256"] == key_digest(made["key"])
    access = tmp_path / "access.yaml"
    access.write_text(yaml.safe_dump({"principals": [made["entry"]]}))
    with Valkey() as server, RouterProcess(tmp_path, "--redis-url", server.url, "--access", str(access)) as router:
        service = Service(router, server)
        assert "SPARSITY_KEY" in service.run("policy", "list", code=6).stderr
        service.run("policy", "list", SPARSITY_KEY=made["key"])
        denied = service.run("policy", "kill", "--reason", "r", SPARSITY_KEY=made["key"], code=6)
        assert "lacks the role breaker" in " ".join(denied.stderr.split())
        draft = tmp_path / "legal.yaml"
        draft.write_text(dump_yaml(POLICIES["legal"]))
        denied = service.run("policy", "apply", str(draft), "--reason", "r", SPARSITY_KEY=made["key"], code=6)
        assert "may edit rag, not" in " ".join(denied.stderr.split())
    assert RUNNER.invoke(app, ["policy", "new-key", "ann", "--role", "king"]).exit_code == 2


def test_outcomes_of_unknown_decisions_are_told(service: Service) -> None:
    result = service.run("outcome", "nosuch", "--score", "0.5", "--metric", "m", code=3)
    assert "not in the decision log" in " ".join(result.stderr.split())


def test_completion_offers_domains(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsity_cli.policies.service import _domains

    monkeypatch.setenv("SPARSITY_ROUTER", service.router.address)
    assert _domains("re") == ["reasoning"]
    monkeypatch.setenv("SPARSITY_ROUTER", "127.0.0.1:1")
    assert _domains("re") == []
    assert os.environ["SPARSITY_ROUTER"]


def test_a_kill_of_a_domain_that_is_none_fails(service: Service) -> None:
    result = service.run("policy", "kill", "--domain", "nosuch", "--reason", "typo", code=3)
    assert "policy 'nosuch' does not exist" in result.stderr
    assert "there is no override" in service.run("policy", "unkill", "--all").stderr
