"""Block-sparse prefill by its definition, in float64 a tile at a time, on any device."""

from __future__ import annotations

import torch
from sparse_kernels import PagedSequence
from sparse_kernels.layout.batch import PagedBatch


def exact_prefill(
    q: torch.Tensor, batch: PagedBatch, kept: torch.Tensor, scale: float, unit: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of ``q``, ``[rows, Hq, D]``, over kept blocks bool ``[Hkv, tiles, blocks]`` and each tile's own keys.

    With a ``unit``, the mean of each whole unit of so many blocks before the tile stands for what is pruned of it.

    Returns:
        float64 ``[rows, Hq, D]``, and the log-sum-exp of the scores, float64 ``[rows, Hq]``; NaN in rows of no tile.
    """
    rows, heads, dim = q.shape
    page, kv_heads = batch.keys.shape[1:3]
    group, tile = heads // kv_heads, batch.tiles.rows
    out = torch.full((rows, heads, dim), torch.nan, dtype=torch.float64, device=q.device)
    lse = torch.full((rows, heads), torch.nan, dtype=torch.float64, device=q.device)
    lengths, starts = batch.lengths.tolist(), batch.starts.tolist()
    laid: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for number, (owner, at) in enumerate(zip(batch.tiles.sequence.tolist(), batch.tiles.number.tolist(), strict=True)):
        length, prefix = lengths[owner], lengths[owner] - (starts[owner + 1] - starts[owner])
        if owner not in laid:
            table = batch.tables[owner, : -(-length // page)].long()
            gathered = PagedSequence(batch.keys, batch.values, table, length).gather()
            laid = {owner: (gathered[0].double(), gathered[1].double())}
        first, last = max(prefix, at * tile), min(length, (at + 1) * tile)
        before, own = at * tile // page, torch.arange(at * tile, last, device=q.device)
        position = torch.arange(first, last, device=q.device)
        into = slice(starts[owner] + first - prefix, starts[owner] + last - prefix)
        for head in range(kv_heads):
            parts = [part[head] for part in laid[owner]]
            mine = kept[head, number, :before]
            columns = [torch.cat([part[:before][mine].flatten(0, 1), part.flatten(0, 1)[own]]) for part in parts]
            bias = torch.zeros(columns[0].shape[0], dtype=torch.float64, device=q.device)
            hidden = torch.zeros(position.numel(), bias.numel(), dtype=torch.bool, device=q.device)
            hidden[:, bias.numel() - own.numel() :] = own > position[:, None]
            if unit:
                units = before // unit
                pruned = (~mine[: units * unit]).view(units, unit).sum(1)
                means = [part[: units * unit].reshape(units, unit * page, dim).mean(1) for part in parts]
                columns = [torch.cat([column, mean[pruned > 0]]) for column, mean in zip(columns, means, strict=True)]
                bias = torch.cat([bias, (pruned[pruned > 0] * page).double().log()])
                hidden = torch.nn.functional.pad(hidden, (0, int((pruned > 0).sum())))
            mine_q = q[into, head * group : (head + 1) * group].double()
            scores = torch.einsum("rgd,nd->rgn", mine_q, columns[0]) * scale + bias
            scores.masked_fill_(hidden[:, None], -torch.inf)
            out[into, head * group : (head + 1) * group] = scores.softmax(-1) @ columns[1]
            lse[into, head * group : (head + 1) * group] = scores.logsumexp(-1)
    return out, lse
