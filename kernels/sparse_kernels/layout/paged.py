"""One sequence of a paged KV cache."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PagedSequence(NamedTuple):
    """Where one sequence's keys and values lie.

    Attributes:
        keys: ``[pages, page, Hkv, D]``, the layer's whole key cache.
        values: same shape.
        table: int64 ``[ceil(length / page)]``, physical page of each logical block.
        length: valid tokens.
    """

    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    length: int

    @property
    def page(self) -> int:
        """Tokens a page."""
        return self.keys.shape[1]

    @property
    def kv_heads(self) -> int:
        """KV heads."""
        return self.keys.shape[2]

    def group(self, heads: int) -> int:
        """Query heads that share a KV head.

        Raises:
            ValueError: when ``heads`` is not a multiple of the KV heads.
        """
        if heads % self.kv_heads:
            raise ValueError(f"q: {heads} query heads are not a multiple of {self.kv_heads} KV heads")
        return heads // self.kv_heads

    def gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in logical order, ``[Hkv, blocks, page, D]`` each, zero past the end of the sequence."""
        keys, values = (cache[self.table].permute(2, 0, 1, 3).contiguous() for cache in (self.keys, self.values))
        # Slots past the end may hold anything, NaN included, which no mask would keep out of a sum.
        for part in (keys, values):
            part.flatten(1, 2)[:, self.length :] = 0
        return keys, values

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[Hkv, length, D]`` in float64, as definitions read them."""
        keys, values = (part.flatten(1, 2)[:, : self.length].double() for part in self.gather())
        return keys, values
