"""What is kept of the kernels' benchmark: every goal is judged, and pages quote what stands in the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sparsity_bench.kernels import dense, goals
from sparsity_serving.benchmark import Row, markdown

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads((ROOT / "docs/benchmarks/kernels.json").read_text(encoding="utf-8"))
ROWS = [Row(**row) for row in DOCUMENT["rows"]]
HEADS = "32/8 heads, d=128"


def judged(name: str, what: str) -> list[Row]:
    """Rows of the heads that goals are of, by a pattern of their names, and by prompt or load."""
    shape = re.compile(rf"{HEADS}, {what} tokens(, .*)?")
    return [row for row in ROWS if re.fullmatch(name, row.name) and shape.fullmatch(row.shape) and row.goal]


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("prefill, full index, (cool|sustained)", goals.FULL),
        ("prefill, random 10%, (cool|sustained), rate", goals.FORCED),
        ("prefill, random 10%, means of 1, cool, extra time", goals.CORRECTION),
        ("selection, top_k, cool", goals.SELECTION_MS),
        *((f"prefill, {tier}, means of 1, selection included, .*", each) for tier, each in goals.PREFILL.items()),
    ],
)
def test_every_goal_of_prefill_has_one_row(name: str, bounds: goals.ByLength) -> None:
    for length, bound in bounds.items():
        (row,) = judged(name, str(length))
        assert row.goal is not None
        assert float(row.goal.split()[1]) == bound


def test_every_goal_of_decode_has_one_row() -> None:
    names = {2048: "aggressive", 4096: "moderate", 512: "512 tokens"}
    for budget, bounds in goals.DECODE.items():
        for (sequences, length), bound in bounds.items():
            (row,) = judged(f"decode, {names[budget]}", f"{sequences} x {length}")
            assert row.goal == f">= {bound:g} times"
            if sequences >= goals.BANDWIDTH_FROM:
                (rate,) = judged(f"decode, {names[budget]}, rate", f"{sequences} x {length}")
                assert rate.goal == f">= {goals.BANDWIDTH:g} times"
    assert judged("decode, every second sequence dense", "16 x 32768")


def test_what_is_judged_follows_from_its_figures() -> None:
    for row in ROWS:
        if row.goal is None:
            continue
        assert row.value is not None
        sign, bound, *unit = row.goal.split()
        value = row.ratio if unit == ["times"] else row.value
        assert value is not None
        assert row.met is (value >= float(bound) if sign == ">=" else value <= float(bound)), row
    for row in ROWS:
        if row.ratio is not None and row.value is not None and row.baseline_value is not None:
            less = row.unit in ("ms", "us a layer")
            assert row.ratio == pytest.approx(
                row.baseline_value / row.value if less else row.value / row.baseline_value
            )


def test_nothing_is_read_faster_than_a_copy_moves_it() -> None:
    shares = [row.ratio for row in ROWS if (row.baseline or "").startswith("a device copy")]
    assert shares
    assert all(share is not None and share <= 1 for share in shares)


def test_the_table_is_the_files() -> None:
    assert (ROOT / "docs/benchmarks/kernels.md").read_text(encoding="utf-8") == markdown("kernels", DOCUMENT)


def figure(name: str, what: str) -> float:
    """Of the heads that goals are of."""
    shape = re.compile(rf"{HEADS}, {what} tokens(, .*)?")
    (found,) = [row.value for row in ROWS if row.name == name and shape.fullmatch(row.shape)]
    assert found is not None
    return found


def prefill_line(what: str, tokens: int, ours: str) -> str:
    taken = figure(ours, str(tokens))
    by = [figure(f"dense prefill, {name}, sustained", str(tokens)) for name in ("cuDNN", dense.CUTE)]
    return (
        f"| {what} | {by[0]:.1f} ms cuDNN; {by[1]:.1f} SGLang's CuTe FlashAttention | {taken:.1f} ms |"
        f" {by[0] / taken:.1f} and {by[1] / taken:.1f} times faster |"
    )


def test_pages_say_what_the_file_does() -> None:
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    for tokens, density in ((32768, "0.19"), (65536, "0.09"), (131072, "0.05")):
        what = f"prefill {tokens // 1024}k, aggressive, density {density}"
        assert prefill_line(what, tokens, "prefill, aggressive, means of 1, selection included, sustained") in page
    assert prefill_line("no block left out: prefill 32k", 32768, "prefill, full index, sustained") in page
    for tokens in (32768, 131072):
        load = f"16 x {tokens}"
        taken = figure("decode, aggressive", load)
        by = [figure(f"dense decode, {name}", load) for name in (dense.SDPA, dense.CUTE_PAGED)]
        line = (
            f"16 sequences of {tokens // 1024}k, 2,048 tokens attended | {by[0]:,.0f} us torch; {by[1]:,.0f} SGLang's"
            f" CuTe FlashAttention | {taken:.0f} us | {by[0] / taken:.1f} and {by[1] / taken:.1f} times faster |"
        )
        assert line in page
    shares = [
        row.ratio
        for row in ROWS
        if row.name.endswith("rate") and row.goal and (row.baseline or "").startswith("a device copy") and row.ratio
    ]
    assert f"reads {min(shares) * 100:.0f} to {max(shares) * 100:.0f} % of what a copy moves" in page


def test_counts_of_goals_and_the_best_ratios_are_the_files() -> None:
    judged_rows = [row for row in ROWS if row.met is not None]
    missed = f"the {sum(not row.met for row in judged_rows)} of {len(judged_rows)} goals that"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (readme, (ROOT / "docs/speed.md").read_text(encoding="utf-8")):
        assert re.search(missed.replace(" ", r"\s+"), text)
    ratios = {
        name: [row.ratio for row in ROWS if row.name == name and row.shape.startswith(HEADS) and row.ratio]
        for name in ("prefill, aggressive, means of 1, selection included, sustained", "decode, aggressive")
    }
    best = [f"{max(each):.1f}" for each in ratios.values()]
    assert f"{best[0]} times as fast as the fastest dense attention in prefill and {best[1]} in decode" in readme
