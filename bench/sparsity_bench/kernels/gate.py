"""Whether a kernel is right on what it is timed with: sampled rows against float64, before its time is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from sparse_kernels import DecodeConfig, PrefillConfig
from sparse_kernels.cpu.block_selection import fixed_blocks, keep
from sparse_kernels.gpu.block_selection import BatchSelection
from sparse_kernels.measured_coverage import spread_rows

from sparsity_bench.kernels.inputs import PAGE, TILE
from sparsity_bench.kernels.kernels import Prompt, Step

_ROWS, _TILES, _SEQUENCES = 24, 4, 4
BOUNDS = {torch.bfloat16: 0.005, torch.float16: 0.002, torch.float32: 1e-4}
# Of what selection keeps, by the need that it goes by; of how many blocks it keeps, since needs that are almost the
# threshold may fall on either side; and of logarithms of shares of pages.
_REGRET, _MORE, _LOG_SHARE = 2e-3, 0.02, 0.02


class Check(NamedTuple):
    """One comparison.

    Attributes:
        name: of what.
        error: how far off; of outputs the RMS of the difference over the RMS of what is right.
        bound: that it must not exceed.
    """

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it is right; NaN is not."""
        return self.error <= self.bound


class Gate:
    """Tells of every check, and remembers how many failed.

    Attributes:
        failed: checks that failed.
        passed: checks that did not.
    """

    def __init__(self) -> None:
        self.failed = self.passed = 0

    def holds(self, *checks: Check) -> bool:
        """Whether all of them pass."""
        for check in checks:
            told = "ok    " if check.passed else "FAILED"
            print(f"{told} {check.name}: {check.error:.2e} (at most {check.bound:g})", flush=True)
            self.failed += not check.passed
            self.passed += check.passed
        return all(check.passed for check in checks)

    def broken(self, name: str) -> None:
        """Notes that something raised in place of an answer."""
        self.holds(Check(f"{name}, to its end", float("nan"), 0.0))


def prefill(name: str, prompt: Prompt, out: torch.Tensor, kept: torch.Tensor, unit: int = 0) -> Check:
    """Rows spread over a prompt, over kept blocks bool ``[Hkv, tiles, blocks]``.

    With a ``unit``, the means of units of so many blocks that lie wholly before the tile stand for what is pruned.
    """
    given = prompt.given
    rows = spread_rows(0, given.sequence.length, _ROWS)
    wanted = _rows(prompt, rows.tolist(), kept, unit)
    # Means are rounded to the dtype of the queries, and stand for many keys each.
    return Check(name, _off(out[rows.to(out.device)], wanted), BOUNDS[given.q.dtype] * (1.5 if unit else 1))


def _rows(prompt: Prompt, positions: list[int], kept: torch.Tensor, unit: int) -> torch.Tensor:
    """Rows by the definition, float64 ``[R, Hq, D]``."""
    given = prompt.given
    keys, values = (part.double() for part in given.sequence.gather())
    kv_heads, blocks, page, dim = keys.shape
    q = given.q[positions].double().view(len(positions), kv_heads, -1, dim)
    out = torch.empty_like(q)
    number = torch.arange(blocks * page, device=q.device)
    for row, position in enumerate(positions):
        before = position // TILE * TILE // page
        for head in range(kv_heads):
            mine = kept[head, position // TILE].clone()
            mine[before:] = True
            seen = mine.repeat_interleave(page) & (number <= position)
            columns = [part[head].flatten(0, 1)[seen] for part in (keys, values)]
            bias = torch.zeros(columns[0].shape[0], dtype=torch.float64, device=q.device)
            units = before // unit if unit else 0
            if units:
                pruned = (~mine[: units * unit]).view(units, unit).sum(1)
                means = [part[head, : units * unit].reshape(units, -1, dim).mean(1) for part in (keys, values)]
                columns = [torch.cat([column, mean[pruned > 0]]) for column, mean in zip(columns, means, strict=True)]
                bias = torch.cat([bias, (pruned[pruned > 0] * page).double().log()])
            out[row, head] = (q[row, head] @ columns[0].T * given.scale + bias).softmax(-1) @ columns[1]
    return out.flatten(1, 2)


def selection(name: str, prompt: Prompt, config: PrefillConfig, found: BatchSelection) -> Check:
    """Tiles spread over a prompt: need that is kept less, blocks that are kept more, or how far off coverage is."""
    before = prompt.before
    kept = found.kept
    if bool((kept & ~before).any()):
        return Check(name, float("inf"), _REGRET)
    tiles = before.shape[0]
    chosen = torch.arange(tiles - 1, -1, -max(1, tiles // _TILES), device=kept.device)
    length, blocks = prompt.given.sequence.length, before.shape[1]
    forced, there = fixed_blocks(chosen * TILE, torch.tensor(length, device=kept.device), blocks, PAGE, config)
    needs, masses = zip(*(_need(prompt, config, int(tile)) for tile in chosen), strict=True)
    need, mass = torch.stack(needs, 1), torch.stack(masses, 1)
    wanted = keep(need, forced, there, config)
    held = (need * kept[:, chosen]).sum(-1)
    regret = ((need * wanted).sum(-1) - held) / (need * wanted).sum(-1).clamp_min(1e-30)
    coverage = 1 - (mass * (there & ~kept[:, chosen])).sum(-1)
    forgotten = float((forced & there & ~kept[:, chosen]).sum())
    more = float(kept[:, chosen].sum()) / max(1.0, float(wanted.sum())) - 1 - _MORE
    error = max(float(regret.max()), float((coverage - found.coverage[:, chosen]).abs().max()), forgotten, more)
    return Check(name, error, _REGRET)


def _need(prompt: Prompt, config: PrefillConfig, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Need and mass of one tile by sub-page means, float64 ``[Hkv, blocks]`` each."""
    given = prompt.given
    means = given.summaries.sub_mean[given.sequence.table].double()
    blocks, subs, kv_heads, dim = means.shape
    size = PAGE // subs
    length = given.sequence.length
    rows = torch.arange((tile + 1) * TILE - 1, tile * TILE - 1, -config.query_stride, device=means.device)
    rows = rows[rows < length]
    rows = rows if rows.numel() else torch.tensor([length - 1], device=means.device)
    q = given.q[rows].double().view(rows.numel(), kv_heads, -1, dim)
    scores = torch.einsum("rhgd,bshd->hrgbs", q, means).flatten(3) * given.scale
    ends = (torch.arange(blocks * subs, device=means.device) + 1) * size
    scores = scores.masked_fill((ends > rows[:, None] + 1)[None, :, None], float("-inf"))
    shares = scores.softmax(-1).nan_to_num().view(*scores.shape[:3], blocks, subs).sum(-1)
    mass = shares.mean((1, 2))
    shares[..., : -(-config.sink // PAGE)] = 0
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-30)
    need = (shares**config.peak).mean((1, 2)) ** (1 / config.peak)
    return need / need.sum(-1, keepdim=True).clamp_min(1e-30), mass


def decode(name: str, step: Step, config: DecodeConfig, out: torch.Tensor, chosen: torch.Tensor) -> Iterator[Check]:
    """A few sequences: the output over the pages that are attended, and whether these are the best by sub-page means.

    Args:
        name: of the checks.
        step: what was decoded.
        config: by what.
        out: ``[sequences, Hq, D]``.
        chosen: attended pages, bool ``[sequences, Hkv, blocks]``.
    """
    sequences = range(0, out.shape[0], max(1, out.shape[0] // _SEQUENCES))
    wanted = torch.stack([_attended(step, number, chosen[number]) for number in sequences])
    yield Check(f"{name}, output", _off(out[list(sequences)], wanted), BOUNDS[step.q.dtype])
    worst = max(_passed_over(step, number, config, chosen[number]) for number in sequences)
    yield Check(f"{name}, log share of the best page left out", worst, _LOG_SHARE)


def _attended(step: Step, sequence: int, chosen: torch.Tensor) -> torch.Tensor:
    length, page = int(step.batch.lengths[sequence]), step.batch.keys.shape[1]
    table = step.batch.tables[sequence, : -(-length // page)].long()
    keys, values = (cache[table].flatten(0, 1)[:length].double() for cache in (step.batch.keys, step.batch.values))
    kv_heads = keys.shape[1]
    q = step.q[sequence].double().view(kv_heads, -1, keys.shape[2])
    out = torch.empty_like(q)
    for head in range(kv_heads):
        seen = chosen[head, : table.numel()].repeat_interleave(page)[:length]
        out[head] = (q[head] @ keys[seen, head].T * step.scale).softmax(-1) @ values[seen, head]
    return out.flatten(0, 1)


def _passed_over(step: Step, sequence: int, config: DecodeConfig, chosen: torch.Tensor) -> float:
    """How much better the best page left out scores than the worst that was free to be left out."""
    length, page = int(step.batch.lengths[sequence]), step.batch.keys.shape[1]
    there = -(-length // page)
    table = step.batch.tables[sequence, :there].long()
    keys = step.batch.keys[table].double()
    slots = torch.arange(there * page, device=keys.device).view(there, page) < length
    subs = step.summaries.sub_mean.shape[1]
    keys = torch.where(slots[..., None, None], keys, 0)
    q = step.q[sequence].double().view(keys.shape[2], -1, keys.shape[3])
    if config.score == "spread":
        score = _by_spread(q, keys, slots) * step.scale
    else:
        keys = keys.view(there, subs, -1, *keys.shape[2:])
        counts = slots.view(there, subs, -1).sum(-1)
        means = keys.sum(2) / counts.clamp_min(1)[..., None, None]
        dots = torch.einsum("hgd,pshd->hgps", q, means) * step.scale + counts.double().log()
        score = dots.logsumexp(-1).log_softmax(-1).amax(1)
    number = torch.arange(there, device=keys.device)
    free = (number * page >= config.sink) & (number < max(0, length - config.recent) // page)
    mine = chosen[:, :there]
    if not bool(mine[:, ~free].all()):
        return float("inf")
    left, taken = score.masked_fill(mine | ~free, -torch.inf), score.masked_fill(~mine | ~free, torch.inf)
    best, worst = left.amax(-1), taken.amin(-1)
    return float(torch.where(best.isinf() | worst.isinf(), 0.0, best - worst).clamp_min(0).max())


def _by_spread(q: torch.Tensor, keys: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """By page means and spreads of keys ``[pages, page, Hkv, D]``, float64 ``[Hkv, pages]``."""
    tokens = slots.sum(1)[:, None, None].double()
    mean = keys.sum(1) / tokens
    away = torch.where(slots[..., None, None], keys - mean[:, None], 0).square().sum((1, 3))
    spread = (away / (tokens[..., 0] * keys.shape[3])).sqrt()
    bound = torch.einsum("hgd,phd->hgp", q, mean) + 0.5 * q.norm(dim=-1, keepdim=True) * spread.T[:, None]
    best: torch.Tensor = bound.amax(1)
    return best


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    difference = (found.double() - wanted).square().mean().sqrt()
    return float(difference / wanted.square().mean().sqrt())
