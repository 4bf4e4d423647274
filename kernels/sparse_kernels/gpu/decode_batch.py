"""What the launches of a decode step share: the sequences, and the buffers that they pass on to each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sparse_kernels.gpu.checks import check_cache, check_device, generation
from sparse_kernels.layout.contents import check_pages
from sparse_kernels.layout.page_summaries import PageSummaries

# Programs that share a step's chosen pages; those that fill the device twice where all pages are attended.
_CHOSEN_PROGRAMS, _WHOLE_PROGRAMS = 512, 264
_TABLE_STEP, _TABLE_PROGRAMS = 256, 8


class DecodeBatch(NamedTuple):
    """One query token of each of several sequences; its key and value are written.

    Several new tokens of a sequence are as many rows, each with its own length; their tables may be one.

    Attributes:
        keys: ``[pages, page, Hkv, D]``, the layer's whole key cache.
        values: same shape.
        tables: int32 ``[sequences, blocks]``, physical page of each logical block; past a sequence's end anything.
        lengths: int32 ``[sequences]``, valid tokens, the new one included.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor

    def check(
        self, summaries: PageSummaries | None = None, read: torch.Tensor | None = None, *, summarized: bool = False
    ) -> None:
        """Checks what the tensors hold, which kernels do not look at on a GPU; it waits for the device.

        Args:
            summaries: by which pages are to be chosen.
            read: bool ``[sequences]``, those of which somebody reads the summaries; None for all.
            summarized: whether the newest pages' summaries are read as they stand.

        Raises:
            ValueError: when pages are out of range, or a summary that is read is stale.
        """
        newest = -(-self.lengths // self.keys.shape[1]) - 1
        used = torch.arange(self.tables.shape[1], device=self.tables.device) < (newest + summarized)[:, None]
        check_pages(
            self.keys, self.tables, self.lengths, summaries, used if read is None else used & read[:, None]
        )  # fmt: skip


class DecodeWorkspace:
    """Buffers of decode, made once for a stream and shared by all layers; a CUDA graph keeps their addresses.

    Args:
        sequences: most of a batch.
        heads: query heads.
        kv_heads: KV heads.
        dim: of a head.
        blocks: most of a table.
        capacity: most pages that a KV head chooses; 0 where every page is attended.
        device: of the cache.
    """

    def __init__(
        self,
        sequences: int,
        heads: int,
        kv_heads: int,
        dim: int,
        blocks: int,
        capacity: int,
        device: torch.device | str,
    ) -> None:
        pairs = sequences * kv_heads
        every = range(1, sequences + 1)
        most = max(max(chosen_splits(each, kv_heads), whole_splits(each, kv_heads)) + each for each in every)
        parts = most * heads
        self._made = (sequences, heads, kv_heads, dim, blocks, capacity)
        self.masses = torch.empty(sequences * heads * blocks if capacity else 0, dtype=torch.float32, device=device)
        self.chosen = torch.empty(pairs * capacity, dtype=torch.int32, device=device)
        self.parts = torch.empty(parts * dim, dtype=torch.float32, device=device)
        self.lse = torch.empty(parts, dtype=torch.float32, device=device)
        # Every launch leaves them at zero; each begins where kernels load words of 16 bytes.
        self.counters, self.scored, self.selected = (
            torch.zeros(pairs, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.nobody = torch.zeros(sequences, dtype=torch.uint8, device=device)

    @classmethod
    def of(cls, q: torch.Tensor, batch: DecodeBatch, capacity: int = 0) -> DecodeWorkspace:
        """One that fits queries ``[sequences, Hq, D]`` over a batch."""
        sequences, heads, dim = q.shape
        return cls(sequences, heads, batch.keys.shape[2], dim, batch.tables.shape[1], capacity, q.device)

    @property
    def sequences(self) -> int:
        """Most of a batch."""
        return self._made[0]

    def check(self, q: torch.Tensor, batch: DecodeBatch, capacity: int = 0) -> None:
        """Checks that a batch fits.

        Raises:
            ValueError: naming the argument.
        """
        asked = (q.shape[0], q.shape[1], batch.keys.shape[2], q.shape[2], batch.tables.shape[1] if capacity else 0)
        made = self._made
        fits = all(less <= more for less, more in zip((*asked, capacity), made, strict=True))
        if not fits or asked[1:4] != made[1:4] or self.counters.device != q.device:
            raise ValueError(
                f"workspace: made for {made} sequences, heads, KV heads, dimensions, blocks and pages, not {asked}"
            )


def chosen_splits(sequences: int, kv_heads: int) -> int:
    """Splits of the chosen pages of all sequences, of one KV head; of shapes only, which a CUDA graph fixes."""
    return sequences * max(1, min(32, round(_CHOSEN_PROGRAMS / (sequences * kv_heads))))


def whole_splits(sequences: int, kv_heads: int) -> int:
    """The same where all pages are attended."""
    return max(-(-_WHOLE_PROGRAMS // kv_heads), 3 * sequences)


def check_batch(q: torch.Tensor, batch: DecodeBatch, dense: torch.Tensor | None = None) -> None:
    """Checks queries ``[sequences, Hq, D]`` against a batch.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_cache(q, batch.keys, batch.values)
    sequences, tables, lengths = q.shape[0], batch.tables, batch.lengths
    if tables.shape[0] != sequences or lengths.shape != (sequences,):
        raise ValueError(f"batch: tables and lengths are not those of {sequences} sequences")
    if tables.dtype != torch.int32 or lengths.dtype != torch.int32:
        raise ValueError(f"batch: tables and lengths are of {tables.dtype} and {lengths.dtype}, not int32")
    if tables.stride(1) != 1 or lengths.stride(0) != 1:
        raise ValueError("batch: rows of tables and lengths must be contiguous")
    check_device("batch", q, tables, lengths)
    if dense is not None:
        check_device("dense", q, dense)
    if dense is not None and (dense.shape != (sequences,) or dense.dtype != torch.bool or dense.stride(0) != 1):
        raise ValueError(f"dense: {tuple(dense.shape)} of {dense.dtype}, not bool {(sequences,)}")


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Options of a launch that may start before the one that it waits for ends (programmatic dependent launch)."""
    if generation(device) != 9 or triton.knobs.runtime.interpret:
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@triton.jit
def tell(counter):  # type: ignore[no-untyped-def]
    """Counts this program among those whose stores may be read."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def await_told(counter, programs):  # type: ignore[no-untyped-def]
    """Waits until so many programs of the launch before have told; all of them run or have ended by then.

    A launch may start before the one it depends on ends, but not before each of that one's programs has.
    """
    seen = tl.atomic_add(counter, 0, sem="acquire")
    while seen < programs:
        seen = tl.atomic_add(counter, 0, sem="acquire")


def fill_tables(
    pool: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    page: int,
    *,
    tables: torch.Tensor,
    held: torch.Tensor,
    written: torch.Tensor,
    filled: torch.Tensor,
) -> None:
    """Writes a decode step's tables from the pool of requests: of each row the blocks that are there, and no more.

    Args:
        pool: int32 ``[requests, context]``, slots of each request's tokens.
        slots: int ``[rows]``, rows of the pool.
        lengths: int ``[rows]``, tokens in the cache.
        page: tokens of a page.
        tables: int32 ``[rows, blocks]``, filled with physical pages.
        held: int32 ``[rows]``, filled with the lengths.
        written: int32 ``[rows]``, filled with the newest token's page.
        filled: int32 ``[rows]``, filled with the tokens in that page.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    rows = slots.shape[0]
    if lengths.shape != (rows,) or any(each.shape[0] != rows for each in (tables, held, written, filled)):
        raise ValueError(f"lengths: {tuple(lengths.shape)} must be of {rows} rows, like what is filled")
    fill_table[(rows, _TABLE_PROGRAMS)](
        pool, slots.contiguous(), lengths.contiguous(), tables, held, written, filled,
        pool.stride(0), tables.stride(0), PAGE=page, STEP=_TABLE_STEP,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def fill_table(  # type: ignore[no-untyped-def]
    pool, slots, seen, tables, lengths, written, filled, s_pool, s_table, PAGE: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """Some blocks of one row's table; its first program also writes what belongs to the row."""
    i_s = tl.program_id(0).to(tl.int64)
    i_p = tl.program_id(1)
    length = tl.load(seen + i_s).to(tl.int32)
    p_pool = pool + tl.load(slots + i_s).to(tl.int64) * s_pool
    there = (length + PAGE - 1) // PAGE
    o_b = tl.arange(0, STEP)
    for first in range(i_p * STEP, there, tl.num_programs(1) * STEP):
        m_b = first + o_b < there
        page = tl.load(p_pool + (first + o_b) * PAGE, mask=m_b, other=0) // PAGE
        tl.store(tables + i_s * s_table + first + o_b, page, mask=m_b)
    if i_p == 0:
        newest = tl.maximum(there - 1, 0)
        tl.store(lengths + i_s, length)
        tl.store(written + i_s, tl.load(p_pool + newest * PAGE) // PAGE)
        tl.store(filled + i_s, length - newest * PAGE)
