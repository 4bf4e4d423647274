"""What is made to take long is checked within limits, and what it is checked in goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sparsity_policies.documents import confined
from sparsity_policies.documents.confined import NO_PROCESS, Confined, NoProcessError
from sparsity_policies.documents.document import parse_policy, unchecked
from sparsity_policies.documents.yaml_bounds import MAX_NESTING, MAX_NODES
from sparsity_policies.documents.yamlfile import dump_yaml, load_yaml
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.model import Policy
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_rpc.errors import InvalidRequestError

SLOW = "[^a]{1,5000}[^b]{1,5000}z"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def policy(**detection: Any) -> Policy:
    bands = [{"from_tokens": 0, "tier": "dense"}]
    return parse_policy({"domain": "x", "risk": "low", "bands": bands, "detection": detection}, unchecked)


@pytest.fixture
def limited() -> Iterator[Confined]:
    made = Confined()
    yield made
    made.close()


def test_mistakes_come_back_as_they_would_here(limited: Confined) -> None:
    assert limited.check(policy(patterns=["a+b"])) == []
    assert [violation.field for violation in limited.check(policy(patterns=["("]))] == ["detection.patterns[0]"]
    good = policy(literals=["attorney-client"])
    assert limited.load(dump_yaml(good), "p.yaml") == good
    with pytest.raises(InvalidRequestError) as caught:
        limited.load("domain: x\nrisk: none\nbands: []\n", "p.yaml")
    with pytest.raises(InvalidRequestError) as here:
        load_yaml("domain: x\nrisk: none\nbands: []\n", "p.yaml")
    assert caught.value.violations == here.value.violations


def test_the_next_call_finds_the_process_that_was_prepared(limited: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    limited.prepare()
    process = limited._process
    assert process is not None
    assert limited.check(policy(patterns=["a+b"])) == []
    assert limited._process is process
    limited.close()
    monkeypatch.setattr(subprocess, "Popen", refused)
    limited.prepare()
    assert NO_PROCESS in limited.check(policy())[0].problem


def refused(*_: Any, **__: Any) -> Any:
    raise OSError(12, "Cannot allocate memory")


def test_a_database_that_was_compiled_there_scans_here(limited: Confined) -> None:
    scanner = Scanner([policy(literals=["trade secret"], flag="legal")], None, limited.compile)
    assert scanner.scan("a Trade\nsecret").flags == {"legal"}
    with pytest.raises(ValueError, match="does not compile"):
        limited.compile(["("])


def test_what_one_compiled_no_other_compiles_again(limited: Confined) -> None:
    made = limited.compile(["kept once"])
    idle = Confined()
    assert idle.compile(["kept once"]) is made
    assert idle._process is None
    assert limited.compile(["kept twice"]) is not made
    for _ in range(2):
        with pytest.raises(ValueError, match="does not compile"):
            idle.compile(["("])
    idle.close()


def test_a_pattern_past_the_limits_is_a_mistake_and_the_next_check_goes_on(
    limited: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(confined, "CHECK_SECONDS", 0.5)
        (found,) = limited.check(policy(patterns=[SLOW]))
    assert found.field == "detection.patterns"
    assert "takes more than 0.51 s to check" in found.problem
    assert limited.check(policy(patterns=["a+b"])) == []
    monkeypatch.setattr(confined, "COMPILE_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"takes more than 0\.51 s to compile"):
        limited.compile([SLOW])


def test_memory_is_limited(limited: Confined) -> None:
    assert limited.check(policy()) == []
    process = limited._process
    assert process is not None
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert line.split()[3:5] == [str(confined.MEMORY_BYTES)] * 2


def test_one_that_was_killed_or_had_ended_is_started_again(limited: Confined) -> None:
    limited.check(policy())
    assert limited._process is not None
    os.kill(limited._process.pid, signal.SIGKILL)
    limited._process.wait()
    assert limited.check(policy()) == []
    assert limited._process.stdin is not None
    # As one that had nothing to do for a while.
    limited._process.stdin.close()
    limited._process.wait()
    assert limited.check(policy()) == []


def test_one_that_is_shut_ends_in_the_midst_of_its_work_and_does_none_after(limited: Confined) -> None:
    limited.check(policy())
    found: list[BaseException] = []

    def compile_() -> None:
        try:
            limited.compile([SLOW])
        except NoProcessError as error:
            found.append(error)

    thread = threading.Thread(target=compile_)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    limited.shut()
    thread.join(2.0)
    assert not thread.is_alive()
    assert len(found) == 1
    with pytest.raises(NoProcessError):
        limited.compile(["a"])


def test_calls_of_many_threads_take_turns(limited: Confined) -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(not limited.check(policy(literals=[f"text {n}"] * 9))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def test_yaml_that_grows_is_refused_at_once() -> None:
    assert len(BOMB) < 544
    started = time.monotonic()
    for text, words in (
        (BOMB, f"more than {MAX_NODES} values"),
        ("[" * (MAX_NESTING + 1), "nests deeper"),
        ("a: &a {b: *a}", "stands in itself"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            load_yaml(text, "p.yaml")
    assert time.monotonic() - started < 1.0


def test_aliases_that_do_not_grow_are_taken() -> None:
    text = "domain: x\nrisk: low\nbands:\n- &b {from_tokens: 0, tier: dense}\n- {<<: *b, from_tokens: 9}\n"
    assert [band.from_tokens for band in load_yaml(text, "p.yaml").bands] == [0, 9]


async def test_a_file_that_no_process_could_check_is_read_again(
    tmp_path: Path, limited: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.yaml").write_text(dump_yaml(policy()))
    folder = PolicyFolder(tmp_path, load=limited.load)

    def refused(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refused)
        assert NO_PROCESS in (await folder.read()).rejected["x"]
        assert [violation.field for violation in limited.check(policy())] == ["policy"]
        with pytest.raises(NoProcessError):
            limited.compile(["a"])
    contents = await folder.read()
    assert (contents.rejected, [stored.policy.domain for stored in contents.policies]) == ({}, ["x"])


async def test_a_file_that_cannot_be_read_is_told_and_the_others_are_followed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(dump_yaml(policy()))
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    folder = PolicyFolder(tmp_path, load=confined.EDITS.load)
    contents = await folder.read()
    assert [stored.policy.domain for stored in contents.policies] == ["x"]
    assert "values once its aliases are written out" in contents.rejected["bomb"]
    assert {name: contents.rejected[name] for name in ("folder", "gone", "pipe")} == dict.fromkeys(
        ("folder", "gone", "pipe"), "is no file"
    )
    (tmp_path / "x.yaml").write_text(dump_yaml(policy(literals=["more"])))
    assert await folder.delta(contents.cursor) is None
    assert (await folder.read()).policies[0].policy.detection.literals == ("more",)
