"""A KV cache for transformers that keeps one sequence in pages, with their summaries, and copies nothing."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence


class PagedLayer(DynamicLayer):  # type: ignore[misc]
    """The pages of one layer.

    Attributes:
        summaries: of the pages, brought up to date by whoever needs them.
    """

    def __init__(self, capacity: int, page: int, sub_page: int) -> None:
        super().__init__()
        self._pages, self._page, self._sub_page = -(-capacity // page), page, sub_page
        self.summaries: PageSummaries | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes the room for all pages."""
        _, kv_heads, _, dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        shape = (self._pages, self._page, kv_heads, dim)
        self._stored = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        self.summaries = PageSummaries.beside(self._stored[0], self._sub_page)
        self._table = torch.arange(self._pages, device=self.device)
        self._show(0)
        self.is_initialized = True

    def _show(self, length: int) -> None:
        self.keys, self.values = (stored.flatten(0, 1)[:length].transpose(0, 1)[None] for stored in self._stored)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes ``[1, Hkv, T, D]`` behind what is there.

        Returns:
            Views of all keys and values, ``[1, Hkv, S, D]``.

        Raises:
            ValueError: when there is more than one sequence, or no room.
        """
        if key_states.shape[0] != 1:
            raise ValueError(f"key_states: one sequence at a time, not {key_states.shape[0]}")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.summaries is not None
        start = self.get_seq_length()
        length = start + key_states.shape[2]
        if length > self._pages * self._page:
            raise ValueError(f"capacity: {self._pages * self._page} tokens are too few for {length}")
        for stored, new in zip(self._stored, (key_states, value_states), strict=True):
            stored.flatten(0, 1)[start:length] = new[0].transpose(0, 1)
        self.summaries.mark(self._table[start // self._page : -(-length // self._page)])
        self._show(length)
        return self.keys, self.values

    @torch.inference_mode()
    def truncate(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens."""
        if self.is_initialized and length < self.get_seq_length():
            assert self.summaries is not None
            self.summaries.mark(self._table[length // self._page :])
            self._show(length)

    def sequence(self) -> PagedSequence:
        """Where keys and values lie."""
        length = self.get_seq_length()
        keys, values = self._stored
        return PagedSequence(keys, values, self._table[: -(-length // self._page)], length)


class PagedCache(Cache):  # type: ignore[misc]
    """One sequence of a model with ``layers`` layers, up to ``capacity`` tokens; pass it as ``past_key_values``."""

    def __init__(self, layers: int, capacity: int, page: int = 64, sub_page: int = 16) -> None:
        super().__init__(layers=[PagedLayer(capacity, page, sub_page) for _ in range(layers)])

    def truncate(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens of every layer."""
        for layer in self.layers:
            layer.truncate(length)

    def pages_of(self, layer: int, keys: torch.Tensor) -> tuple[PagedSequence, PageSummaries] | None:
        """The pages behind ``keys`` when they are this cache's view of the layer, else None."""
        held: PagedLayer = self.layers[layer]
        if not held.is_initialized or held.keys.data_ptr() != keys.data_ptr() or held.keys.shape != keys.shape:
            return None
        assert held.summaries is not None
        return held.sequence(), held.summaries
