"""Charts of a result file of the kernels' benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparse_kernels import plot


def row(name: str, shape: str, ratio: float | None) -> dict[str, Any]:
    return {"name": name, "shape": shape, "ratio": ratio}


DOCUMENT = {
    "header": {"device": "made up", "date": "2026-11-28"},
    "rows": [
        row("dense, torch cuDNN", "32/8 heads, d=128, 8192 tokens", None),
        row("ours, aggressive, selection included", "32/8 heads, d=128, 16384 tokens, density 0.340", 2.0),
        row("ours, aggressive, selection included", "32/8 heads, d=128, 8192 tokens, density 0.540", 1.2),
        row("ours, moderate, selection included", "9/3 heads, d=64, 8192 tokens, density 0.800", 0.9),
        row("ours, aggressive, share of selection", "32/8 heads, d=128, 8192 tokens, density 0.540", 0.1),
    ],
}


def test_points_are_by_tier_and_heads_in_order_of_length() -> None:
    assert plot.points(DOCUMENT) == {
        "aggressive, 32/8 heads, d=128": [(8192, 0.54, 1.2), (16384, 0.34, 2.0)],
        "moderate, 9/3 heads, d=64": [(8192, 0.8, 0.9)],
    }


def test_it_draws_a_picture(tmp_path: Path) -> None:
    results = tmp_path / "kernels.json"
    results.write_text(json.dumps(DOCUMENT))
    assert plot.main(["--results", str(results)]) == 0
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "is not there"), ("{}", "rows: none of prefill"), ("[", "Expecting"), ("[]", "is no result file")],
)
def test_what_cannot_be_drawn_is_said(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "kernels.json"
    if text is not None:
        results.write_text(text)
    assert plot.main(["--results", str(results)]) == 2
    assert words in capsys.readouterr().err
