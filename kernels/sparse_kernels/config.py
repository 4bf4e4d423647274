"""The numbers that steer block selection and sparse decode."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_kernels.mean_correction import UNITS

# The modules that define them import this one; a test holds both lists together.
SCORE_NAMES = (
    "sampled_rows", "sub_means", "block_means", "second_order", "antidiagonal", "vertical_slash", "flex",
    "window_only", "random_blocks", "strided_blocks", "lsh_buckets",
)  # fmt: skip
RULE_NAMES = ("max_threshold", "top_p", "top_k")
PAGE_SCORE_NAMES = ("spread", "sub_pages")


def _require(condition: bool, name: str, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{name}: {remedy}")


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Block-sparse prefill.

    A score estimates each key block's share of a query tile's softmax mass, and a rule keeps blocks by these shares.

    Attributes:
        sparse_from: prompts of fewer tokens are attended densely.
        score: what estimates a block's share, a name of :data:`sparse_kernels.scores.SCORES`.
        rule: what becomes of the shares, a name of :data:`sparse_kernels.cpu.block_selection.RULES`.
        threshold: in [0, 1]. For ``max_threshold`` the share of the strongest block's mass that a block needs, 0 for
            all blocks; for ``top_p`` the share to keep of what a tile needs, 1 for every block that is needed at all;
            for ``top_k`` the share of the prompt's blocks that every tile keeps.
        head_thresholds: one threshold for each KV head in place of ``threshold``; none when empty.
        query_tile: query rows that share one index, tokens.
        peak: exponent of the power mean over rows, at least 1: 1 goes by what a tile's rows attend on average, larger
            ones by what single rows attend strongly.
        query_stride: every ``query_stride``-th row of a tile is scored.
        mean_correction: what is pruned enters the softmax as (mean key, mean value) columns of weight ``log(keys)``.
        mean_blocks: blocks behind such a column, 1, 2 or 4. A unit of so many that lies wholly before the tile enters
            by the mean of all its blocks, and weighs the keys of its pruned ones; the few blocks between the last unit
            and the tile are not corrected.
        sink: tokens at the start of the context that are always kept.
        window: tokens before the query tile that are always kept.
        dense_last_tiles: query tiles at the end of the prompt that attend densely.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    sparse_from: int = 2048
    score: str = "sub_means"
    rule: str = "max_threshold"
    threshold: float = 0.02
    head_thresholds: tuple[float, ...] = ()
    query_tile: int = 128
    query_stride: int = 4
    peak: float = 1.0
    mean_correction: bool = True
    mean_blocks: int = 1
    sink: int = 64
    window: int = 256
    dense_last_tiles: int = 1

    def __post_init__(self) -> None:
        _require(self.sparse_from >= 0, "sparse_from", "must be 0 or more tokens")
        _require(self.score in SCORE_NAMES, "score", f"must be one of {', '.join(SCORE_NAMES)}, not {self.score!r}")
        _require(self.rule in RULE_NAMES, "rule", f"must be one of {', '.join(RULE_NAMES)}, not {self.rule!r}")
        _require(0.0 <= self.threshold <= 1.0, "threshold", "must lie in [0, 1]")
        _require(all(0.0 <= each <= 1.0 for each in self.head_thresholds), "head_thresholds", "must lie in [0, 1]")
        _require(self.query_tile >= 1, "query_tile", "must be at least 1 row")
        _require(1 <= self.query_stride <= self.query_tile, "query_stride", "must lie in [1, query_tile]")
        _require(self.peak >= 1.0, "peak", "must be at least 1")
        _require(self.mean_blocks in UNITS, "mean_blocks", f"must be one of {', '.join(map(str, UNITS))}")
        _require(self.sink >= 0, "sink", "must be 0 or more tokens")
        _require(self.window >= 0, "window", "must be 0 or more tokens")
        _require(self.dense_last_tiles >= 0, "dense_last_tiles", "must be 0 or more tiles")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Sparse paged decode: the best pages of each KV head.

    Attributes:
        sparse_from: contexts of fewer tokens are attended densely.
        budget: tokens attended a step and KV head, sink and recent pages included.
        sink: tokens at the start of the context that are always kept.
        recent: latest tokens that are always kept.
        score: what pages are chosen by, a name of :data:`sparse_kernels.cpu.sparse_paged_decode.PAGE_SCORES`.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    sparse_from: int = 2048
    budget: int = 1024
    sink: int = 64
    recent: int = 256
    score: str = "spread"

    def __post_init__(self) -> None:
        known = ", ".join(PAGE_SCORE_NAMES)
        _require(self.score in PAGE_SCORE_NAMES, "score", f"must be one of {known}, not {self.score!r}")
        _require(self.sparse_from >= 0, "sparse_from", "must be 0 or more tokens")
        _require(self.sink >= 0, "sink", "must be 0 or more tokens")
        _require(self.recent >= 1, "recent", "must be at least 1 token")
        _require(self.budget >= self.sink + self.recent, "budget", "must be at least sink + recent")
