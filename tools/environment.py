"""Builds the environment that `make` works in; needs nothing but Python 3.11 or later.

The dependencies live in a cache folder keyed by a hash of the constraints, shared by every clone on the machine.
The clone itself gets a small `.venv` that sees that folder and has our distributions installed in editable form.
`--light` takes what `make try` needs and no more, in a folder of its own; where all is there already, it takes that.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import venv
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
# Folders of our distributions, each after those that it depends on.
DISTRIBUTIONS = ("client", "serving", "worker", "router", "bench")
STAMP = "complete"
PROGRESS_SECONDS = 3.0
# Programs of the shared environment that `make` calls by path.
TOOLS = ("buf", "hadolint", "protoc-gen-mypy", "protoc-gen-mypy_grpc", "ruff", "uv", "yamllint")


@dataclass(frozen=True, slots=True)
class Kind:
    """A set of dependencies.

    Attributes:
        folder: how the names of its cache folders begin.
        distributions: whose dependencies belong to it.
        extras: which of their extras do; None is all, and the tools of a clone besides.
        size: what it takes, in words.
        free_gib: what must be free on the disk, GiB.
    """

    folder: str
    distributions: tuple[str, ...]
    extras: tuple[str, ...] | None
    size: str
    free_gib: int


WHOLE = Kind("env", DISTRIBUTIONS, None, "about 11 GB, several minutes the first time", 14)
LIGHT = Kind("try", DISTRIBUTIONS[:-1], ("embedded", "semantic"), "about 0.4 GB, a minute the first time", 2)


def cache_root() -> Path:
    """The folder that clones share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsity-router"


def environment_key() -> str:
    """Changes whenever the installed set could."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform}".encode())
    digest.update((ROOT / "constraints.txt").read_bytes())
    digest.update("\n".join(requirements(WHOLE)).encode())
    return digest.hexdigest()[:16]


def site_packages(env: Path) -> Path:
    """Where `env` keeps its packages."""
    return env / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def say(text: str) -> None:
    """Progress goes to stderr, so that `make` output stays usable."""
    print(f"[environment] {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Pip:
    """What a running pip is at, by its own lines and by what it has installed.

    Attributes:
        site: where it installs to.
        last: its latest lines.
        step: what it said last that tells of progress.
        total: packages that it installs; 0 until it says so.
    """

    site: Path
    last: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    step: str = "starting pip"
    total: int = 0
    _before: int = 0

    def follow(self, lines: IO[str]) -> None:
        """Reads its lines until it ends."""
        for line in lines:
            self.last.append(line)
            verb, _, what = line.strip().partition(" ")
            if line.startswith("Installing collected packages: "):
                self._before, self.total = self._installed(), line.count(",") + 1
            elif verb in ("Collecting", "Processing", "Downloading", "Using", "Building"):
                self.step = f"{verb} {what.split(' (')[0].rsplit('/', 1)[-1][:60]}"

    def told(self) -> str:
        """Where it is, in words."""
        if self.total:
            return f"installed {self._installed() - self._before} of {self.total} packages"
        return self.step

    def _installed(self) -> int:
        return sum(1 for _ in self.site.glob("*.dist-info"))


def run_pip(env: Path, arguments: list[str]) -> None:
    """Runs pip of `env`; says every few seconds what it is at, and ends the build with its last words when it fails."""
    command = [str(env / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    started, pip = time.monotonic(), Pip(site_packages(env))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=pip.follow, args=(process.stdout,))
        reader.start()
        while reader.is_alive():
            reader.join(PROGRESS_SECONDS)
            if reader.is_alive():
                say(f"{time.monotonic() - started:.0f} s: {pip.told()}")
    if process.returncode:
        sys.exit(f"{''.join(pip.last)}[environment] failed ({process.returncode}): {' '.join(command)}")


def requirements(kind: Kind) -> list[str]:
    """What is installed besides our own; what builds our own is too, because clones do without isolation."""
    found: set[str] = set()
    for folder in kind.distributions:
        document = _read(ROOT / folder)
        project = document["project"]
        found.update(document["build-system"]["requires"], project["dependencies"])
        for extra, lines in project.get("optional-dependencies", {}).items():
            if kind.extras is None or extra in kind.extras:
                found.update(lines)
    if kind.extras is None:
        found.update(*_read(ROOT)["dependency-groups"].values())
    return sorted(line for line in found if not line.startswith("sparsity-"))


def _read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


@contextmanager
def alone(env: Path) -> Iterator[None]:
    """Holds the shared `env`, which several clones may want to build at once."""
    started = time.monotonic()
    with open(env.parent / f"{env.name}.lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                say(f"{time.monotonic() - started:.0f} s: waiting for another clone, which builds {env}")
                time.sleep(PROGRESS_SECONDS)
        yield


def build_dependencies(env: Path, kind: Kind) -> None:
    """Installs the constrained dependencies of `kind` into the shared `env`."""
    if (env / STAMP).exists():
        return
    env.parent.mkdir(parents=True, exist_ok=True)
    with alone(env):
        if (env / STAMP).exists():
            return
        free = shutil.disk_usage(env.parent).free / 2**30
        if free < kind.free_gib:
            needed = f"has {free:.0f} GiB free and {kind.free_gib} are needed"
            sys.exit(f"[environment] {env.parent} {needed}; set XDG_CACHE_HOME elsewhere")
        shutil.rmtree(env, ignore_errors=True)
        say(f"installing dependencies into {env} ({kind.size})")
        started = time.monotonic()
        try:
            venv.create(env, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "[environment] this Python cannot make virtual environments; on Debian: apt-get install python3-venv"
            )
        run_pip(env, ["--progress-bar", "off", "-c", str(ROOT / "constraints.txt"), *requirements(kind)])
        (env / STAMP).write_text(environment_key())
        say(f"dependencies ready after {time.monotonic() - started:.0f} s")


def build_clone(env: Path) -> None:
    """Makes the clone's own `.venv` over `env`."""
    own = ROOT / ".venv"
    told = b"".join((ROOT / folder / "pyproject.toml").read_bytes() for folder in DISTRIBUTIONS)
    key = hashlib.sha256(env.name.encode() + told).hexdigest()
    if _linked(own) == f"{key} {ROOT}":
        return
    say(f"linking {own} to {env}")
    shutil.rmtree(own, ignore_errors=True)
    venv.create(own, with_pip=False)
    # addsitedir, unlike a plain path line, also honours the .pth files that dependencies ship.
    (site_packages(own) / "shared.pth").write_text(f"import site; site.addsitedir({str(site_packages(env))!r})\n")
    editable = [word for folder in DISTRIBUTIONS for word in ("--editable", str(ROOT / folder))]
    run_pip(own, ["--no-deps", "--no-build-isolation", *editable])
    for name in TOOLS:
        if (env / "bin" / name).exists():
            (own / "bin" / name).symlink_to(env / "bin" / name)
    # Routers find the domain of a request by it; where it is there already, that is all.
    fetch = [str(own / "bin" / "python"), "-m", "sparsity_router.prompts.embedding_model"]
    if subprocess.run(fetch, stdout=sys.stderr).returncode:
        sys.exit("[environment] the embedding model could not be fetched (see above)")
    (own / STAMP).write_text(f"{key} {ROOT}")


def _linked(own: Path) -> str:
    stamp = own / STAMP
    return stamp.read_text() if stamp.exists() else ""


def main() -> None:
    """Builds what is missing."""
    parser = argparse.ArgumentParser(description="Builds the environment that `make` works in.")
    parser.add_argument("--light", action="store_true", help="only what `sparsity up --engine echo` needs: no torch")
    key = environment_key()
    env, kind = cache_root() / f"{WHOLE.folder}-{key}", WHOLE
    if parser.parse_args().light and not (env / STAMP).exists():
        env, kind = cache_root() / f"{LIGHT.folder}-{key}", LIGHT
    build_dependencies(env, kind)
    build_clone(env)


if __name__ == "__main__":
    main()
