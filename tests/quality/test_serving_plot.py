"""Charts of a result file of the serving benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity_bench.serving import plot, summary


def row(name: str, shape: str, value: float, ratio: float | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape, "value": value, "ratio": ratio, "baseline": ratio and "dense, fa4"}


DOCUMENT = {
    "header": {"device": "made up", "date": "2026-11-29", "model": "a model"},
    "rows": [
        row("dense: time to first token", "8B, 1024 tokens, density 1.000", 0.03),
        row("dense: time to first token", "8B, 32768 tokens, density 1.000", 1.2),
        row("dense: time per output token", "8B, 8 x 32768 tokens, density 1.000", 0.014),
        row("dense: throughput of a mixed load", "60 requests", 20_000.0),
        row("aggressive: time to first token", "8B, 32768 tokens, density 0.104", 0.8, 1.5),
        row("aggressive: time to first token", "8B, 1024 tokens, density 1.000", 0.03, 1.0),
        # Of a length that the dense tier was not asked for.
        row("aggressive: time to first token", "8B, 65536 tokens, density 0.090", 1.7),
        row("aggressive: time per output token", "8B, 8 x 32768 tokens, density 0.061", 0.007, 2.0),
        row("aggressive: throughput of a mixed load", "60 requests", 30_000.0, 1.5),
        row("aggressive: start to serving", "8B", 100.0, 1.0),
    ],
}


def test_figures_are_by_tier_and_shape() -> None:
    assert plot.figures(DOCUMENT, "time per output token", plot.BATCH) == {
        "dense": {"8 x 32768": (0.014, None)},
        "aggressive": {"8 x 32768": (0.007, 2.0)},
    }
    lengths = plot.figures(DOCUMENT, "time to first token", plot.LENGTH)["aggressive"]
    assert lengths == {"32768": (0.8, 1.5), "1024": (0.03, 1.0), "65536": (1.7, None)}


def test_a_table_tells_the_tiers_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "serving.json"
    results.write_text(json.dumps(DOCUMENT))
    assert summary.main(["--results", str(results)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| a model on one made up | dense, fa4 | moderate | aggressive |",
        "|---|---|---|---|",
        "| first token of 1,024 tokens | 30 ms |  | 30 ms, 1.00 times dense |",
        "| first token of 32,768 tokens | 1.20 s |  | 0.80 s, 1.50 times dense |",
        "| first token of 65,536 tokens |  |  | 1.70 s |",
        "| a token, 8 x 32768 tokens | 14.0 ms |  | 7.0 ms, 2.00 times dense |",
        "| mixed load | 20,000 tokens/s |  | 30,000 tokens/s, 1.50 times dense |",
    ]
    assert summary.main(["--results", str(tmp_path / "absent.json")]) == 2


def test_it_draws_a_picture(tmp_path: Path) -> None:
    results = tmp_path / "serving.json"
    results.write_text(json.dumps(DOCUMENT))
    assert plot.main(["--results", str(results)]) == 0
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "words"), [(None, "is not there"), ('{"rows": []}', "rows: none of time to first"), ("[", "Expecting")]
)
def test_what_cannot_be_drawn_is_said(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "serving.json"
    if text is not None:
        results.write_text(text)
    assert plot.main(["--results", str(results)]) == 2
    assert words in capsys.readouterr().err
