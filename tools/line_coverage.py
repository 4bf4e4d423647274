"""Which lines of ours the tests run: `python tools/line_coverage.py PYTEST_ARGUMENTS`, by the Python of the clone.

coverage.py is fetched into the cache folder, and only then seen by the clone's Python: every process of a test, its
routers and workers among them, is measured from its start (coverage.readthedocs.io/subprocess.html). Whatever else is
set stands in pyproject.toml, `fail_under` among it: a smaller share of the lines is a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environment import ROOT, alone, cache_root, run_pip, site_packages

VERSION = "7.17.5"
REPORT = ROOT / ".cache" / "coverage" / "report.json"
# Modules that are named: those with the most lines that no test runs.
NAMED = 10


def fetch() -> Path:
    """The folder of coverage.py.

    Raises:
        SystemExit: when pip cannot install it.
    """
    folder = cache_root() / f"coverage-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if not (folder / "coverage").exists():
            run_pip(Path(sys.prefix), ["--no-deps", "--quiet", "--target", str(folder), f"coverage=={VERSION}"])
    return folder


@contextmanager
def seen(folder: Path) -> Iterator[None]:
    """Every process of the clone's Python finds what lies in `folder`, and runs what starts with it."""
    path = site_packages(Path(sys.prefix)) / "coverage.pth"
    path.write_text(f"import site; site.addsitedir({str(folder)!r})\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def coverage(*arguments: str) -> int:
    """Runs a command of coverage.py; its exit status."""
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, check=False).returncode


def least() -> float:
    """The share of the lines that is held, percent."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return float(document["tool"]["coverage"]["report"]["fail_under"])


def told(report: dict[str, Any], held: float) -> Iterator[str]:
    """The report in lines: each package's share, the modules with the most lines that were not run, and all in all."""
    lines: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for name, file in report["files"].items():
        package = Path(name).parts[1]
        lines[package] += file["summary"]["num_statements"]
        missing[package] += file["summary"]["missing_lines"]
        modules[name] = file["summary"]["missing_lines"]
    yield from (f"{100 * (1 - missing[package] / lines[package]):6.1f} % {package}" for package in sorted(lines))
    yield from (f"{count:6d} lines left out: {name}" for name, count in modules.most_common(NAMED) if count)
    yield f"{share(report):6.1f} % of all lines; {held:g} % are held"


def share(report: dict[str, Any]) -> float:
    """Lines that were run, percent of all."""
    return float(report["totals"]["percent_covered"])


def status(failed: int, report: dict[str, Any], held: float) -> int:
    """What the command exits with: the status of the tests, else 1 for less than what is held."""
    return failed or int(share(report) < held)


def main() -> None:
    """Measures, and exits with what failed: the tests, else the share."""
    with seen(fetch()):
        coverage("erase")
        failed = coverage("run", "-m", "pytest", *sys.argv[1:])
        coverage("combine", "--quiet")
        coverage("json", "--quiet", "-o", str(REPORT), "--fail-under=0")
    report, held = json.loads(REPORT.read_text(encoding="utf-8")), least()
    print(*told(report, held), sep="\n")
    sys.exit(status(failed, report, held))


if __name__ == "__main__":
    main()
