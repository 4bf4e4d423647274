"""The Triton kernels compile for Hopper without a GPU: on tensor cores, without spilled registers or float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import triton
from sparse_kernels.gpu import kernels
from sparse_kernels.gpu.page_scores import STAGES as SCORE_STAGES
from sparse_kernels.gpu.sparse_paged_decode import STAGES, split_warps
from support.kernels.assembled import assembled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
FLOATS = ("scale", "softcap", "skip_below", "peak", "headroom")
HALVES = ("q", "k", "v", "out", "q_rope", "k_rope", "columns", "means", "value_means", "sub_means")
SINGLES = (
    "lse",
    "spreads",
    "scores",
    "parts",
    "weights",
    "mass",
    "need",
    "masses",
)
INDICES = (
    "tables",
    "lengths",
    "starts",
    "tile_sequence",
    "tile_number",
    "block_starts",
    "block_counts",
    "blocks",
    "offsets",
    "pages",
    "chosen",
    "filled",
    "scored",
    "selected",
    "counts",
    "counters",
    "pool",
    "slots",
    "seen",
    "written",
    "kinds",
    "limits",
    "lost",
)
SELECTION = {
    "columns": "tensordesc<bf16[64, {DIM}]>",
    "scratch": "*fp16",
    "dense": "*u8",
    "weights": "*fp16",
    "headroom_bits": "fp32",
    **dict.fromkeys(("maxima", "needs", "thresholds", "coverage"), "*fp32"),
    **dict.fromkeys(("totals", "items", "first_steps", "index_starts", "listed"), "*i32"),
}
SELECTED = {
    "TILE": 128, "BLOCK": 64, "SAMPLED": 16, "STRIDE": 8, "COLUMNS": 64, "SUBS": 4, "WIDTH": 2048, "UNIT": 4,
    "HALF": True, "DENSE": True, "TMA": True, "TOGETHER": True, "STAGES": 3,
}  # fmt: skip
GATHER = {
    **dict.fromkeys(("columns", "unit_means", "unit_value_means"), "*bf16"),
    **dict.fromkeys(("first_steps", "step_owner", "first_units", "chunk_owner"), "*i32"),
}
PREFILL = {"TILE": 128, "BLOCK": 64, "GROUP": 4, "UNIT": 1, "MEANS": 64, "CORRECT": True, "WINDOW": False, "CAP": False}
PAGES = {"PAGE": 64, "GROUP": 4, "HEADS": 8, "PDL": True, "EACH": False}


class Built(NamedTuple):
    """What the compilers made of a kernel."""

    wgmma: int
    tensor: int
    registers: int
    spilled: int


def built(name: str, warps: int, **constants: int) -> Built:
    """Compiles a kernel for pages of 64 keys, bfloat16 and four query heads a KV head."""
    kernel = kernels()[name]
    names = kernel.arg_names
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(FLOATS, "fp32")
    # `blocks` is a number where blocks and pages are scored.
    indices = [
        each for each in INDICES if each != "blocks" or name not in ("score_pages", "choose_pages", "block_energy")
    ]
    kinds |= (
        {"sub_counts": "*i16", "asked": "*i8", "dense": "*u8", "stale": "*u8"}
        | dict.fromkeys(indices, "*i32")
        | dict.fromkeys(SINGLES, "*fp32")
        | dict.fromkeys(HALVES, "*bf16")
    )
    if name == "block_sparse_prefill":
        kinds["weights"] = "*fp16"
    own = {"select_tile_blocks": SELECTION, "gather_means": GATHER}.get(name, {})
    kinds |= {each: kind.format(**constants) for each, kind in own.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, each in enumerate(names)
        if kinds.get(each, "").startswith("*") or each.startswith("s_")
    }
    source = ASTSource(
        kernel,
        {each: kinds.get(each, "i32") for each in names},
        {(names.index(each),): value for each, value in constants.items()},
        aligned,
    )
    ptx = str(triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": 2}).asm["ptx"])
    # A constant that float32 holds only as a subnormal number makes Triton compute in float64.
    assert not re.findall(r".*f64.*", ptx), name
    told = assembled(ptx).told
    (registers,), (spilled,) = re.findall(r"Used (\d+) registers", told), re.findall(r"(\d+) bytes spill stores", told)
    return Built(ptx.count("wgmma.mma_async"), ptx.count("mma.sync"), int(registers), int(spilled))


@pytest.mark.parametrize("per", [1, 4, 64])
@pytest.mark.parametrize("dim", [64, 128])
def test_block_energy(dim: int, per: int) -> None:
    shape = {"TILE": 128, "BLOCK": 64, "GROUP": 4, "SAMPLED": 16, "STRIDE": 8, "ROWS": 64, "COLUMNS": 64}
    made = built("block_energy", 4, DIM=dim, PER=per, **shape)
    assert made.wgmma + made.tensor > 0
    assert made.spilled == 0


# Rule, and how often a share is squared: none, the profiles' eighth power, and any power.
@pytest.mark.parametrize(("rule", "squares"), [(0, 0), (1, 3), (2, -1)])
@pytest.mark.parametrize(("dim", "group", "rows", "tiles"), [(128, 4, 64, 2), (64, 7, 128, 1)])
def test_tile_selection(dim: int, group: int, rows: int, tiles: int, rule: int, squares: int) -> None:
    shape = {"DIM": dim, "GROUP": group, "ROWS": rows, "TILES": tiles, "RULE": rule, "SQUARES": squares}
    made = built("select_tile_blocks", 4, **shape, **SELECTED)
    assert made.wgmma == 3 * 2 * dim // 16
    assert made.tensor > 0
    # A few scalars that outlive the loops; two programs share the registers of a multiprocessor.
    assert made.spilled <= 64
    assert made.registers * 2 * 4 * 32 <= 65536


@pytest.mark.parametrize("unit", [1, 4])
def test_ordered_means(unit: int) -> None:
    made = built("gather_means", 8, BLOCK=64, DIM=128, COLUMNS=64, SUBS=4, UNIT=unit, UNITS=32, CHUNK=128)
    assert made.spilled == 0


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("dim", "warps"), [(64, 4), (128, 8)])
def test_block_sparse_prefill(dim: int, warps: int, skip: bool) -> None:
    made = built("block_sparse_prefill", warps, DIM=dim, SKIP=skip, **PREFILL)
    assert made.wgmma >= 20
    assert made.spilled == 0
    assert made.registers * warps * 32 <= 65536


@pytest.mark.parametrize(("correct", "spilled"), [(False, 0), (True, 32)])
def test_block_sparse_prefill_of_wide_heads(correct: bool, spilled: int) -> None:
    """What no Gluon kernel takes: outputs of 128 rows and 256 columns are all registers of eight warps."""
    made = built("block_sparse_prefill", 8, DIM=256, SKIP=False, **PREFILL | {"CORRECT": correct})
    assert made.wgmma >= 20
    assert made.spilled <= spilled


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("dim", "columns", "warps"), [(64, 128, 4), (128, 64, 4), (128, 128, 4), (256, 64, 8)])
def test_page_scores(dim: int, columns: int, warps: int, spread: bool) -> None:
    shape = {"ROWS": 16, "SUBS": 4, "STEP": columns if spread else columns // 4, "NEWEST": True, "STAGES": SCORE_STAGES}
    made = built("score_pages", warps, DIM=dim, FULL=4.0, SPREAD=spread, **shape, **PAGES)
    assert made.tensor + made.wgmma > 0
    assert made.spilled == 0


@pytest.mark.parametrize(("width", "warps"), [(512, 8), (2048, 8), (8192, 16), (16384, 32)])
@pytest.mark.parametrize(("group", "shares"), [(1, False), (4, True), (7, True)])
def test_page_selection(group: int, shares: bool, width: int, warps: int) -> None:
    shape = {"GROUPS": triton.next_power_of_2(group), "WIDTH": width, "SHARES": shares, "FUSED": True}
    made = built("choose_pages", warps, AWAITED=True, **PAGES | {"GROUP": group}, **shape)
    # Of a million tokens' scores a few are, and a number that outlives the search of one row of 2,048.
    assert made.spilled <= (96 if width > 8192 else 4 if (group, width) == (1, 2048) else 0)


# As they are launched: two warps, and eight where rows are wide or many.
@pytest.mark.parametrize(("dim", "rows", "tile"), [(64, 16, 64), (128, 16, 64), (128, 32, 64), (256, 16, 32)])
@pytest.mark.parametrize(("page", "sequences"), [(16, 1), (64, 1), (64, 256), (128, 16)])
def test_sparse_paged_decode(page: int, sequences: int, dim: int, rows: int, tile: int) -> None:
    shape = {"GROUPS": 4, "ROWS": rows, "TILE": tile, "DIM": dim, "SEQUENCES": sequences, "LEAST": 2, "STAGES": STAGES}
    made = built("attend_pages", split_warps(rows, dim), MERGED=8192 // (4 * dim), **PAGES | {"PAGE": page}, **shape)
    assert made.tensor + made.wgmma > 0
    # What outlives the loop over tiles, and is read again after it.
    assert made.spilled <= (48 if (page, dim, rows) == (64, 128, 16) else 0)


def test_decode_of_sequences_with_limits_of_their_own() -> None:
    own, each = {"DIM": 128, "ROWS": 16}, PAGES | {"EACH": True}
    steps = {"FULL": 4.0, "SPREAD": False, "SUBS": 4, "STEP": 32, "NEWEST": True, "STAGES": SCORE_STAGES}
    assert built("score_pages", 4, **own, **steps, **each).spilled == 0
    chosen = {"GROUPS": 4, "WIDTH": 2048, "SHARES": True, "FUSED": True, "AWAITED": True}
    assert built("choose_pages", 8, **chosen, **each).spilled == 0
    splits = {"GROUPS": 4, "TILE": 64, "SEQUENCES": 64, "LEAST": 2, "STAGES": STAGES, "MERGED": 16}
    assert built("attend_pages", split_warps(16, 128), **own, **splits, **each).spilled <= 48


def test_decode_over_all_pages() -> None:
    shape = {"PAGE": 64, "DIM": 128, "GROUP": 4, "TILE": 64, "LEAST": 2, "MERGED": 32, "PDL": True}
    assert built("merge_splits", 4, SEQUENCES=256, **shape).spilled == 0
    assert built("fill_table", 4, PAGE=64, STEP=256).spilled == 0


@pytest.mark.parametrize(("dim", "warps"), [(64, 4), (128, 4), (256, 8)])
def test_page_summaries(dim: int, warps: int) -> None:
    assert built("summarize", warps, PAGE=64, SUB=16, HEADS=8, DIM=dim).spilled == 0


def test_token_sparse_attention() -> None:
    scoring = built("score_tokens", 4, DIM=128, ROWS=64, TOKENS=64)
    attending = built("attend_tokens", 4, DIM=128, GROUP=4, ROWS=16, TOKENS=64)
    assert min(made.tensor + made.wgmma for made in (scoring, attending)) > 0
    assert [made.spilled for made in (scoring, attending)] == [0, 0]


def test_latent_attention() -> None:
    shape = {"RANK": 512, "ROPE": 64, "ROWS": 16, "TOKENS": 32}
    latent = built("attend_latent", 4, **shape)
    again = built("attend_lost", 4, HEADS=64, FLAGS=64, **shape)
    assert min(made.tensor + made.wgmma for made in (latent, again)) > 0
    assert [made.spilled for made in (latent, again)] == [0, 0]


def test_every_kernel_is_compiled_here() -> None:
    text = Path(__file__).read_text()
    assert all(re.search(rf'built\(\s*"{name}"', text) for name in kernels())
