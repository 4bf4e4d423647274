"""Builds the environment that `make` works in; needs nothing but Python 3.11 or later.

The heavy dependencies live in a cache folder keyed by a hash of the constraints, shared by every clone on the machine.
The clone itself gets a small `.venv` that sees that folder and has the project installed in editable form.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "complete"
PROGRESS_SECONDS = 5.0
# Programs of the shared environment that `make` calls by path.
TOOLS = ("buf", "hadolint", "protoc-gen-mypy", "protoc-gen-mypy_grpc", "ruff", "yamllint")


def cache_root() -> Path:
    """The folder that clones share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsity-router"


def environment_key() -> str:
    """Changes whenever the installed set could."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform}".encode())
    for name in ("constraints.txt", "pyproject.toml"):
        lines = (ROOT / name).read_bytes()
        if name == "pyproject.toml":
            # Only what pip reads decides what is installed: tool settings do not.
            lines = lines.split(b"[project.scripts]")[0]
        digest.update(lines)
    return digest.hexdigest()[:16]


def site_packages(env: Path) -> Path:
    """Where `env` keeps its packages."""
    return env / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def say(text: str) -> None:
    """Progress goes to stderr, so that `make` output stays usable."""
    print(f"[environment] {text}", file=sys.stderr, flush=True)


def run(command: list[str]) -> None:
    """Runs pip; says every few seconds what it is at, and ends the build with its last words when it fails."""
    started = said = time.monotonic()
    last: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last[-19:], line]
            verb, _, what = line.strip().partition(" ")
            if verb in ("Collecting", "Downloading", "Installing") and time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                say(f"{said - started:.0f} s: {verb} {what.split(' (')[0].rsplit('/', 1)[-1][:60]}")
    if process.returncode:
        sys.exit(f"{''.join(last)}[environment] failed ({process.returncode}): {' '.join(command)}")


def build_dependencies(env: Path) -> None:
    """Installs the constrained dependencies into the shared `env`."""
    if (env / STAMP).exists():
        return
    env.parent.mkdir(parents=True, exist_ok=True)
    with open(env.parent / f"{env.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (env / STAMP).exists():
            return
        free = shutil.disk_usage(env.parent).free / 2**30
        if free < 14:
            sys.exit(
                f"[environment] {env.parent} has {free:.0f} GiB free and 14 are needed; set XDG_CACHE_HOME elsewhere"
            )
        shutil.rmtree(env, ignore_errors=True)
        say(f"installing dependencies into {env} (about 11 GB, several minutes the first time)")
        started = time.monotonic()
        try:
            venv.create(env, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "[environment] this Python cannot make virtual environments; on Debian: apt-get install python3-venv"
            )
        listing = subprocess.run(
            [str(env / "bin" / "python"), "-c", _REQUIREMENTS, str(ROOT / "pyproject.toml")],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\n")
        requirements = [line for line in listing if line]
        pip = [
            str(env / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ]
        run([*pip, "-c", str(ROOT / "constraints.txt"), *requirements])
        (env / STAMP).write_text(environment_key())
        say(f"dependencies ready after {time.monotonic() - started:.0f} s")


_REQUIREMENTS = """
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
for group in (project["dependencies"], *project["optional-dependencies"].values()):
    print("\\n".join(group))
"""


def build_clone(env: Path) -> None:
    """Makes the clone's own `.venv` over `env`."""
    own = ROOT / ".venv"
    stamp = own / STAMP
    key = hashlib.sha256(environment_key().encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == f"{key} {ROOT}":
        return
    say(f"linking {own} to {env}")
    shutil.rmtree(own, ignore_errors=True)
    venv.create(own, with_pip=False)
    # addsitedir, unlike a plain path line, also honours the .pth files that dependencies ship.
    (site_packages(own) / "shared.pth").write_text(f"import site; site.addsitedir({str(site_packages(env))!r})\n")
    run(
        [
            str(own / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
            "--editable",
            str(ROOT),
        ]
    )
    for name in TOOLS:
        (own / "bin" / name).symlink_to(env / "bin" / name)
    stamp.write_text(f"{key} {ROOT}")


def main() -> None:
    """Builds what is missing."""
    env = cache_root() / f"env-{environment_key()}"
    build_dependencies(env)
    build_clone(env)


if __name__ == "__main__":
    main()
