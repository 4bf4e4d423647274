"""How much of the code the tests run is held, and the page for developers says how much."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import line_coverage
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "developing.md"


def file(statements: int, missing: int) -> dict[str, Any]:
    return {"summary": {"num_statements": statements, "missing_lines": missing}}


REPORT = {
    "files": {"router/sparsity_router/a.py": file(60, 6), "router/sparsity_router/b.py": file(20, 2),
              "client/sparsity_client/c.py": file(20, 0)},
    "totals": {"percent_covered": 92.0},
}  # fmt: skip


def test_the_page_says_the_share_that_is_held() -> None:
    (said,) = re.findall(r"(?m)^make coverage .*; below ([\d.]+) % of them it fails$", PAGE.read_text(encoding="utf-8"))
    assert float(said) == line_coverage.least()


def test_a_share_is_held_at_each_change() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yaml").read_text(encoding="utf-8"))
    # YAML takes the key for a word of truth.
    assert "pull_request" in workflow[True]
    assert "make coverage" in [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert line_coverage.least() > 0


def test_the_report_tells_packages_and_what_was_left_out() -> None:
    assert list(line_coverage.told(REPORT, 90.0)) == [
        " 100.0 % sparsity_client",
        "  90.0 % sparsity_router",
        "     6 lines left out: router/sparsity_router/a.py",
        "     2 lines left out: router/sparsity_router/b.py",
        "  92.0 % of all lines; 90 % are held",
    ]


@pytest.mark.parametrize(("failed", "held", "status"), [(0, 92.0, 0), (0, 92.1, 1), (5, 0.0, 5), (5, 99.0, 5)])
def test_failed_tests_and_less_than_what_is_held_fail(failed: int, held: float, status: int) -> None:
    assert line_coverage.status(failed, REPORT, held) == status
