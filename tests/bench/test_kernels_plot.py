"""Charts of a result file of the kernels' benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity_bench.kernels import plot

HEADS = "32/8 heads, d=128"


def row(name: str, shape: str, value: float, ratio: float | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape, "value": value, "ratio": ratio}


DOCUMENT = {
    "header": {"device": "made up", "date": "2026-11-28"},
    "rows": [
        row("dense prefill, cuDNN, cool, rate", f"{HEADS}, 8192 tokens", 600.0),
        row("prefill, random 10%, cool, rate", f"{HEADS}, 8192 tokens, density 0.110", 500.0),
        row("prefill, random 10%, sustained, rate", f"{HEADS}, 8192 tokens, density 0.110", 480.0),
        row("prefill, random 10%, means of 1, cool", f"{HEADS}, 8192 tokens, density 0.110", 1.0),
        row("prefill, full index, cool, rate", "9/3 heads, d=64, 8192 tokens", 300.0),
        row(
            "prefill, aggressive, means of 1, selection included, cool", f"{HEADS}, 16384 tokens, density 0.340", 1, 2.0
        ),
        row(
            "prefill, aggressive, means of 1, selection included, cool", f"{HEADS}, 8192 tokens, density 0.540", 1, 1.2
        ),
        row(
            "prefill, aggressive, means of 1, selection included, sustained",
            f"{HEADS}, 8192 tokens, density 0.540",
            1,
            1.1,
        ),
        row(
            "prefill, moderate, means of 1, selection included, cool",
            "9/3 heads, d=64, 8192 tokens, density 0.8",
            1,
            0.9,
        ),
        row("prefill, aggressive, share of selection", f"{HEADS}, 8192 tokens, density 0.540", 0.1),
        row("dense decode, torch, contiguous", f"{HEADS}, 16 x 32768 tokens", 480.0),
        row("decode, aggressive", f"{HEADS}, 16 x 32768 tokens", 80.0, 6.0),
        row("decode, aggressive, rate", f"{HEADS}, 16 x 32768 tokens", 3.0, 0.8),
    ],
}


def test_tiers_are_by_heads_in_order_of_length_and_sustained_where_there_is_such_a_row() -> None:
    assert plot.tiers(DOCUMENT) == {
        f"aggressive, means of 1, {HEADS}": [(8192, 1.1, 0.54), (16384, 2.0, 0.34)],
        "moderate, means of 1, 9/3 heads, d=64": [(8192, 0.9, 0.8)],
    }


def test_rates_are_of_the_first_heads_and_steps_of_every_load() -> None:
    assert plot.rates(DOCUMENT) == {
        "dense prefill, cuDNN": [(8192, 600.0, None)],
        "prefill, random 10%": [(8192, 480.0, 0.11)],
    }
    assert plot.steps(DOCUMENT) == {"aggressive": {f"{HEADS}\n16 x 32768": 6.0}}


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


def test_a_run_of_some_parts_has_no_charts_and_that_is_no_error() -> None:
    assert plot.drawable(DOCUMENT)
    assert not plot.drawable(DOCUMENT | {"rows": [row("decode, aggressive", f"{HEADS}, 16 x 32768 tokens", 80.0, 6.0)]})
