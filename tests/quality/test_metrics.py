"""Scores against cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from sparsity_quality.subjects.reading import mean_run
from sparsity_quality.tasks.case import cut
from sparsity_quality.tasks.metrics import METRICS, normalized


@pytest.mark.parametrize(
    ("metric", "text", "answers", "score"),
    [
        ("contains", " 48213, I think", ["48213"], 1.0),
        ("contains", " 148213", ["48213"], 0.0),
        ("contains", "The Mountain-Goats!", ["mountain goats"], 1.0),
        ("contains", "", ["x"], 0.0),
        ("recall", "7, 9 and 11", ["7", "8", "9", "10"], 0.5),
        ("recall", "none of it", ["7", "8"], 0.0),
        ("exact", " The answer.\nmore", ["answer"], 1.0),
        ("exact", "the answers", ["answer"], 0.0),
        ("exact", "", ["answer"], 0.0),
        ("prefix", " return a", ["return ab"], 8 / 9),
        ("prefix", "xreturn", ["return"], 0.0),
        ("prefix", "return a + b", ["return a"], 1.0),
        ("f1", "the red big house", ["a red house"], 0.8),
        ("f1", "nothing", ["a red house"], 0.0),
        ("f1", "one two", ["three", "one"], 2 / 3),
    ],
)
def test_a_metric(metric: str, text: str, answers: list[str], score: float) -> None:
    assert METRICS[metric](text, answers) == pytest.approx(score)


def test_normalization() -> None:
    assert normalized("  The  Cat's, a hat ") == "cat s hat"


@pytest.mark.parametrize(
    ("text", "stop", "rest"),
    [
        (" 42.\nmore", "\n", " 42."),
        ("\n\n 42\n7", "\n", "\n\n 42"),
        ("no end", ".", "no end"),
        ("", "\n", ""),
        ("\n", "\n", "\n"),
    ],
)
def test_an_answer_ends_at_its_stop_unless_it_begins_with_it(text: str, stop: str, rest: str) -> None:
    assert cut(text, stop) == rest


def test_the_mean_run_counts_to_the_next_difference() -> None:
    agree = torch.ones(160, dtype=torch.bool)
    agree[10] = agree[100] = False
    # From 0 ten tokens, from 64 thirty-six, from 128 to the end thirty-two.
    assert mean_run(agree) == pytest.approx((10 + 36 + 32) / 3)
    assert mean_run(torch.zeros(64, dtype=torch.bool)) == 0.0
