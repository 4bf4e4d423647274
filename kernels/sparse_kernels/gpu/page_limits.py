"""How many pages a decode step chooses, and from which length on: of a batch, or of each of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl

from sparse_kernels.config import DecodeConfig

_COLUMNS = 4
# Longer than any context.
_NEVER = 2**31 - 1


def page_capacity(config: DecodeConfig, page: int) -> int:
    """Pages that a KV head attends at most: the budget's, or those of sink and recent tokens where these are more."""
    return max(config.budget // page, -(-config.sink // page) + -(-config.recent // page) + 1)


class PageLimits(NamedTuple):
    """What each sequence of a batch attends, where they differ; read on the device, so that a CUDA graph holds it.

    Attributes:
        kinds: int32 ``[sequences]``, each one's row of the table.
        table: int32 ``[kinds, 4]``: tokens from which pages are chosen, pages of a KV head then, and sink and recent
            tokens. No pages are those of sequences that attend all they have, and whose pages nobody summarizes.
    """

    kinds: torch.Tensor
    table: torch.Tensor

    @classmethod
    def of(cls, kinds: torch.Tensor, configs: Sequence[DecodeConfig | None], page: int) -> Self:
        """Of sequences of these kinds; None is a kind that attends everything.

        Args:
            kinds: int32 ``[sequences]``.
            configs: of the kinds; of one score.
            page: tokens a page.

        Raises:
            ValueError: when their scores differ.
        """
        scores = sorted({config.score for config in configs if config is not None})
        if len(scores) > 1:
            raise ValueError(f"score: must be one for all that decode together, not {' and '.join(scores)}")
        rows = [
            (config.sparse_from, page_capacity(config, page), config.sink, config.recent)
            if config is not None
            else (_NEVER, 0, 0, 0)
            for config in configs
        ]
        return cls(kinds, torch.tensor(rows, dtype=torch.int32, device=kinds.device))

    def check(self, sequences: int) -> None:
        """Whether they are of so many sequences.

        Raises:
            ValueError: naming what does not fit.
        """
        if self.kinds.shape != (sequences,) or self.kinds.dtype != torch.int32 or self.kinds.stride(0) != 1:
            raise ValueError(f"limits: kinds {tuple(self.kinds.shape)} of {self.kinds.dtype}, not int32 {(sequences,)}")
        if self.table.shape[1:] != (_COLUMNS,) or self.table.dtype != torch.int32 or not self.table.is_contiguous():
            raise ValueError(f"limits: table is {tuple(self.table.shape)} of {self.table.dtype}, not int32 [kinds, 4]")


def chosen_from(
    lengths: torch.Tensor,
    config: DecodeConfig,
    page: int,
    *,
    dense: torch.Tensor | None,
    limits: PageLimits | None,
) -> torch.Tensor:
    """Which sequences attend chosen pages, and not all of them, bool ``[sequences]``; it waits for the device.

    Raises:
        ValueError: when limits name a kind that is not in their table.
    """
    least: torch.Tensor | int = config.sparse_from
    most: torch.Tensor | int = page_capacity(config, page)
    if limits is not None:
        kinds = limits.kinds.long()
        if kinds.numel() and not 0 <= int(kinds.min()) <= int(kinds.max()) < limits.table.shape[0]:
            raise ValueError(f"limits: kinds up to {int(kinds.max())}, the table has {limits.table.shape[0]}")
        least, most = limits.table[kinds, 0], limits.table[kinds, 1]
    chosen = (lengths >= least) & (-(-lengths // page) > most)
    return chosen if dense is None else chosen & ~dense


@triton.jit
def own_limits(kinds, limits, o_s, m_s):  # type: ignore[no-untyped-def]
    """Tokens from which pages of the sequences ``o_s`` are chosen, and how many."""
    p_own = limits + tl.load(kinds + o_s, mask=m_s, other=0) * 4
    return tl.load(p_own), tl.load(p_own + 1)


@triton.jit
def own_ends(kinds, limits, i_s):  # type: ignore[no-untyped-def]
    """Sink and recent tokens of a sequence."""
    p_own = limits + tl.load(kinds + i_s) * 4
    return tl.load(p_own + 2), tl.load(p_own + 3)
