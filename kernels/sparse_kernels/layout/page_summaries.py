"""Page summaries: key mean, key spread and value mean of each physical KV page.

They are indexed by physical page, so pages shared through a prefix cache keep valid summaries. A write only marks the
pages it touches; the first sparse call that meets a marked page recomputes it, so that dense calls never pay.
"""

from __future__ import annotations

import torch

from sparse_kernels.layout.paged import PagedSequence


class PageSummaries:
    """Summaries of one layer's paged KV cache; means are computed in float32, and kept in ``dtype``.

    Attributes:
        sub_mean: ``[pages, subs, Hkv, D]``, mean key of each sub-page (rows past the written length are zero).
        sub_count: int16 ``[pages, subs]``, keys behind each sub-page mean.
        mean: ``[pages, Hkv, D]``, mean key of the page.
        value_mean: ``[pages, Hkv, D]``, mean value of the page.
        spread: float32 ``[pages, Hkv]``, root mean square distance of a key from the page mean, per dimension.
        stale: bool ``[pages]``, written since it was summarized.
    """

    def __init__(
        self,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        sub_page: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if page_size % sub_page:
            raise ValueError(f"sub_page: {sub_page} must divide the page size {page_size}")
        self.page_size = page_size
        self.sub_page = sub_page
        subs = page_size // sub_page
        self.sub_mean = torch.zeros(pages, subs, kv_heads, head_dim, device=device, dtype=dtype)
        self.sub_count = torch.zeros(pages, subs, dtype=torch.int16, device=device)
        self.mean = torch.zeros(pages, kv_heads, head_dim, device=device, dtype=dtype)
        self.value_mean = torch.zeros(pages, kv_heads, head_dim, device=device, dtype=dtype)
        self.spread = torch.zeros(pages, kv_heads, device=device)
        self.stale = torch.ones(pages, dtype=torch.bool, device=device)

    @classmethod
    def beside(cls, keys: torch.Tensor, sub_page: int) -> PageSummaries:
        """Of a cache ``[pages, page, Hkv, D]``: float32 on the CPU, as wide as the keys where kernels multiply them."""
        pages, page, kv_heads, dim = keys.shape
        dtype = torch.float32 if keys.device.type == "cpu" else keys.dtype
        return cls(pages, page, kv_heads, dim, sub_page, keys.device, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes held by the summaries."""
        tensors = (self.sub_mean, self.sub_count, self.mean, self.value_mean, self.spread, self.stale)
        return sum(t.element_size() * t.numel() for t in tensors)

    def mark(self, pages: torch.Tensor) -> None:
        """Notes that ``pages``, int64, were written."""
        self.stale[pages] = True

    def refresh(self, sequence: PagedSequence) -> None:
        """Recomputes what is stale among the pages of ``sequence``."""
        stale = self.stale[sequence.table].nonzero().squeeze(1)
        if stale.numel():
            filled = (sequence.length - stale * self.page_size).clamp_max(self.page_size)
            self.update(sequence.keys, sequence.values, sequence.table[stale], filled)

    def update(self, keys: torch.Tensor, values: torch.Tensor, pages: torch.Tensor, filled: torch.Tensor) -> None:
        """Recompute the summaries of ``pages``.

        Args:
            keys: the layer's key cache, ``[all pages, page, Hkv, D]``.
            values: the layer's value cache, same shape.
            pages: int64 ``[N]``, physical pages that were written.
            filled: int64 ``[N]``, valid keys in each, 1 to the page size.

        Raises:
            ValueError: when ``pages`` and ``filled`` differ in length.
        """
        if pages.shape != filled.shape:
            raise ValueError(f"filled: shape {tuple(filled.shape)} must equal that of pages {tuple(pages.shape)}")
        self.stale[pages] = False
        whole = filled == self.page_size
        self._summarize(keys, values, pages[whole], None)
        if not whole.all():
            self._summarize(keys, values, pages[~whole], filled[~whole])

    def _summarize(
        self, keys: torch.Tensor, values: torch.Tensor, pages: torch.Tensor, filled: torch.Tensor | None
    ) -> None:
        """Summarizes ``pages``; None for ``filled`` means whole pages, which need no masks and no float32 copies."""
        subs = self.page_size // self.sub_page
        k, v = keys[pages], values[pages]
        count = torch.full_like(pages, self.page_size) if filled is None else filled
        valid = torch.arange(self.page_size, device=k.device)[None, :] < count[:, None]
        if filled is not None:
            # What lies past the end is left over from another sequence.
            k, v = (torch.where(valid[:, :, None, None], cache, 0) for cache in (k, v))
        tokens = count.view(-1, 1, 1).float()
        sub_count = valid.view(-1, subs, self.sub_page).sum(-1)
        sub_sum = k.view(k.shape[0], subs, self.sub_page, *k.shape[2:]).sum(2, dtype=torch.float32)
        mean = sub_sum.sum(1) / tokens
        square = torch.linalg.vector_norm(k, dim=(1, 3), dtype=torch.float32).square() / (tokens[:, 0] * k.shape[-1])
        self.sub_mean[pages] = (sub_sum / sub_count.clamp_min(1)[:, :, None, None]).to(self.sub_mean.dtype)
        self.sub_count[pages] = sub_count.to(torch.int16)
        self.mean[pages] = mean.to(self.mean.dtype)
        self.value_mean[pages] = (v.sum(1, dtype=torch.float32) / tokens).to(self.value_mean.dtype)
        self.spread[pages] = (square - mean.square().mean(-1)).clamp_min(0.0).sqrt()
