"""What tensors of a batch hold, which only their device knows: kernels follow page numbers without a look at them.

A number that is wrong reads or writes past the end of a cache. To look waits for the device, so kernels do it by
themselves for CPU tensors only; tests, benchmarks and the integration with transformers ask for it, serving does not.
"""

from __future__ import annotations

import torch

from sparse_kernels.layout.page_summaries import PageSummaries


def check_pages(
    keys: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    summaries: PageSummaries | None = None,
    read: torch.Tensor | None = None,
) -> None:
    """Checks the pages of sequences; it waits for the device.

    Args:
        keys: ``[pages, page, Hkv, D]``.
        tables: int ``[sequences, blocks]``.
        lengths: int ``[sequences]``, tokens.
        summaries: of the pages; None where nobody reads them.
        read: bool ``[sequences, blocks]``, whose summaries are read; None for all that are there.

    Raises:
        ValueError: when a sequence is longer than its table, lies on a page that is not there, or on one whose summary
            is read and stale.
    """
    if not lengths.numel():
        return
    pages, page, blocks = keys.shape[0], keys.shape[1], tables.shape[1]
    least, most = int(lengths.min()), int(lengths.max())
    if least < 0 or most > blocks * page:
        raise ValueError(f"batch: lengths from {least} to {most}, tables have room for {blocks * page} tokens")
    there = torch.arange(blocks, device=tables.device) < -(-lengths // page)[:, None]
    held = tables[there]
    if held.numel() and not 0 <= int(held.min()) <= int(held.max()) < pages:
        raise ValueError(f"batch: tables hold pages {int(held.min())} to {int(held.max())}, the cache has {pages}")
    if summaries is not None:
        used = tables[there if read is None else there & read].long()
        stale = int(summaries.stale[used].sum())
        if stale:
            raise ValueError(f"summaries: {stale} of {used.numel()} pages that are read are stale")
