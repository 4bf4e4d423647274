"""README's first commands in a fresh clone: a decision is explained and a policy edited soon after the installation."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import environment
from support.deploy.wheels import wheels_alone
from support.ports import free_port, free_ports

ROOT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS, SECONDS = 800.0, 60.0
# What a newcomer has not set.
OURS = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES")


def clone(folder: Path) -> Path:
    """A clone with what is not committed yet."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    listing = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    changed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, changed.split("\0")):
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@dataclass
class Fresh:
    """`make try` in a clone with caches and a state of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path

    def wait(self, found: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not found():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def shell(self, line: str) -> str:
        """What a line of README prints."""
        done = subprocess.run(
            shlex.split(line, comments=True), cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def tried(folder: Path) -> Iterator[Fresh]:
    """Runs it, on ports that are free."""
    router, http, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", free_ports(2)
    own = {name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("SPARSITY_")}
    own |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state"), "NO_COLOR": "1"}
    # The wheels are no part of what is fresh.
    own |= wheels_alone() | {"SPARSITY_ROUTER": router}
    command = ["make", "try", f"UP=--listen {router} --http {http} --metrics-port {metrics}"]
    place, log = clone(folder / "clone"), folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=place, env=own, stdout=out, stderr=out, start_new_session=True)
    try:
        yield Fresh(place, process, own, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)


def test_readmes_first_commands_explain_a_decision_and_edit_a_policy(tmp_path: Path) -> None:
    _, _, section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Try it\n")
    first, explain, edit = section.partition("```sh\n")[2].partition("\n\n")[0].splitlines()
    assert first.startswith("make try ")
    assert "explain" in explain
    assert "policy edit" in edit
    with tried(tmp_path) as fresh:
        fresh.wait((fresh.folder / ".venv" / environment.STAMP).exists, INSTALL_SECONDS)
        started = time.monotonic()
        # The tour caps the domain for a moment.
        fresh.wait(lambda: "tour: ended" in fresh.log.read_text(), SECONDS)
        toured = time.monotonic() - started
        before = fresh.shell(explain)
        editor = tmp_path / "editor"
        editor.write_text('#!/bin/sh\nexec sed -i "s/tier: [a-z]*/tier: dense/" "$1"\n')
        editor.chmod(0o755)
        fresh.environment["VISUAL"] = str(editor)
        fresh.shell(edit)
        after = fresh.shell(explain)
        seconds = time.monotonic() - started
    print(f"{seconds:.0f} s after the environment was there, {toured:.0f} s of them until the tour had ended")
    assert before.startswith("aggressive  LENGTH_BAND")
    assert after.startswith("dense  LENGTH_BAND")
    assert {each.name.partition("-")[0] for each in (tmp_path / "cache" / "sparsity-router").iterdir()} >= {"try"}
    (site,) = (tmp_path / "cache" / "sparsity-router").glob("try-*/lib/*/site-packages")
    assert not [name for name in ("torch", "sglang", "transformers", "triton") if (site / name).exists()]
    assert seconds < SECONDS
