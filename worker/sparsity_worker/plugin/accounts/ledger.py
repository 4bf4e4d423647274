"""Counts what the backend attended for each request, and packs it for the way out of the scheduler."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sparse_kernels.stats import AttentionStats

from sparsity_worker.keys import NOBODY
from sparsity_worker.plugin.accounts.shares import DECODE, FIELDS, Shares, shares_of

_HEADER = struct.Struct("<IQQQdQ")


@dataclass(frozen=True, slots=True)
class Account:
    """What one request attended.

    Attributes:
        sparse_calls: kernel calls that pruned something, of all ranks.
        calls: kernel calls in all.
        reasoning: generated tokens that decoded densely because they lay in a reasoning span.
        measured: share of softmax mass kept, measured on some rows of some layers; 1 where there were none.
        measured_rows: those rows.
        table: float64 ``[layers, 2 phases, 4]``: attended pairs, causal pairs, coverage summed over rows, rows.
    """

    sparse_calls: int
    calls: int
    reasoning: int
    measured: float
    measured_rows: int
    table: NDArray[np.float64]

    @classmethod
    def unpack(cls, packed: bytes) -> Account:
        """Reads what :meth:`Ledger.pack` wrote.

        Raises:
            ValueError: when the bytes are not an account.
        """
        if len(packed) < _HEADER.size:
            raise ValueError(f"account: {len(packed)} bytes are too few")
        layers, sparse_calls, calls, reasoning, mass, rows = _HEADER.unpack_from(packed)
        if len(packed) != _HEADER.size + layers * 2 * FIELDS * 8:
            raise ValueError(f"account: {len(packed)} bytes do not make {layers} layers")
        body = np.frombuffer(packed, dtype=np.float64, offset=_HEADER.size)
        return cls(sparse_calls, calls, reasoning, mass / rows if rows else 1.0, rows, body.reshape(layers, 2, FIELDS))

    def density(self, phase: int) -> NDArray[np.float64]:
        """Attended over causal pairs of each layer; 1 where nothing was attended."""
        attended, causal = self.table[:, phase, 0], self.table[:, phase, 1]
        return _ratio(attended, causal)

    def coverage(self) -> NDArray[np.float64]:
        """Estimated share of softmax mass kept by each layer, over all rows; 1 where there was none."""
        total, rows = self.table[:, :, 2].sum(1), self.table[:, :, 3].sum(1)
        return _ratio(total, rows)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.ones_like(whole)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


# Sparse calls, calls, measured share summed over rows, measured rows.
_COUNTS: Final = 4

StepPrices = Callable[[NDArray[np.int64], NDArray[np.bool_]], NDArray[np.int64]]
"""Tokens that a query head attends, ``[layers, steps]``, of lengths and of which steps are dense."""
Inside = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Which steps, by their lengths, lie in a reasoning span."""


class _Entry:
    """What was attended: over all ranks, by this rank since they last added up, and steps whose price is not yet in."""

    __slots__ = ("attended", "entered", "fresh", "reasoning", "settled", "steps", "tier")

    def __init__(self, layers: int) -> None:
        self.settled = np.zeros(_COUNTS + layers * 2 * FIELDS)
        self.fresh = np.zeros_like(self.settled)
        self.reasoning = 0
        # Tokens of the request that were attended, and count no more.
        self.attended = 0
        # Tokens in the cache at each; negative where all of them were attended.
        self.steps: list[int] = []
        self.entered = 0
        self.tier = 0


class _Deferred(NamedTuple):
    rids: frozenset[str]
    enter: Callable[[], None]
    ready: Callable[[], bool]


class Ledger:
    """Accounts of the requests in flight, by request id; bounded, oldest dropped first; none for `NOBODY`."""

    def __init__(self, layers: int, capacity: int) -> None:
        self._layers = layers
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._deferred: list[_Deferred] = []
        self._priced: tuple[Sequence[int], Sequence[StepPrices], int, int] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def price_steps(self, layers: Sequence[int], prices: Sequence[StepPrices], heads: int, ranks: int) -> None:
        """How :meth:`step` counts.

        Args:
            layers: numbers of those that attend.
            prices: of each tier, tokens that a query head attends in each.
            heads: query heads of a layer, of one rank.
            ranks: that attend alike.
        """
        self._priced = layers, prices, heads, ranks

    def shares(self, rid: str, length: int, new: int, prompt: int) -> Shares:
        """What counts of a request's newest tokens, as :func:`shares_of` says; :meth:`attended` ends their counting."""
        return shares_of(length, new, self.known(rid), prompt)

    def known(self, rid: str) -> int:
        """Tokens of a request that earlier passes attended."""
        entry = self._entries.get(rid)
        return entry.attended if entry else 0

    def attended(self, rid: str, length: int) -> None:
        """Notes that a pass has attended so many tokens of a request."""
        entry = self._entry(rid)
        entry.attended = max(entry.attended, length)

    def add(self, rid: str, layer: int, shares: Shares, stats: AttentionStats) -> None:
        """Books one kernel call, of which ``shares`` count."""
        entry = self._entry(rid)
        entry.fresh[:2] += (stats.attended < stats.causal, 1)
        if stats.measured_rows:
            self.measured(rid, stats.measured, stats.measured_rows)
        self._table(entry.fresh)[layer] += shares * (
            stats.attended, stats.causal, stats.coverage * stats.rows, stats.rows,
        )  # fmt: skip

    def add_layers(self, rid: str, shares: Shares, layers: Sequence[int], table: NDArray[np.float64]) -> None:
        """Books one call of each layer at once.

        Args:
            rid: the request.
            shares: that count of it.
            layers: their numbers.
            table: float64 ``[layers, 4]``: attended pairs, causal pairs, coverage summed over rows, rows.
        """
        entry = self._entry(rid)
        entry.fresh[:2] += ((table[:, 0] < table[:, 1]).sum(), len(layers))
        self._table(entry.fresh)[layers] += shares * table[:, None]

    def step(self, rid: str, length: int, *, dense: bool, tier: int = 0) -> None:
        """Books one decode step of all layers, whose price is asked when the account is packed; each length once.

        Args:
            rid: the request.
            length: tokens in the cache, the new one included.
            dense: whether all of them were attended, be there a reasoning span or not.
            tier: the request's, by which its steps are priced.
        """
        entry = self._entry(rid)
        # SGLang drops a step that ran ahead of a request it took back, and takes it again.
        if length <= entry.attended:
            return
        entry.attended = length
        entry.tier = tier
        entry.steps.append(-length if dense else length)

    def steps(self, rid: str) -> int:
        """Steps of a request so far."""
        entry = self._entries.get(rid)
        return entry.entered + len(entry.steps) if entry else 0

    def measured(self, rid: str, share: float, rows: int) -> None:
        """Books that ``rows`` rows kept ``share`` of their softmax mass, as measured."""
        self._entry(rid).fresh[2:_COUNTS] += (share * rows, rows)

    def reasoned(self, rid: str) -> None:
        """Books one token that decodes densely because it lies in a reasoning span."""
        self._entry(rid).reasoning += 1

    def defer(self, rids: Sequence[str], enter: Callable[[], None], ready: Callable[[], bool]) -> None:
        """Has ``enter`` book later what the device has not told yet.

        Args:
            rids: the requests that it books for, of which none is packed before.
            enter: books them.
            ready: whether it would not wait.
        """
        self._catch_up(lambda deferred: deferred.ready())
        self._deferred.append(_Deferred(frozenset(rids), enter, ready))

    def _catch_up(self, due: Callable[[_Deferred], bool]) -> None:
        late, self._deferred = self._deferred, []
        for each in late:
            if due(each):
                each.enter()
            else:
                self._deferred.append(each)

    def settle(self, rids: Sequence[str], add_up: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        """Adds up what the ranks attended; every rank must call it after the same batches.

        Args:
            rids: the batch's requests, in an order that all ranks have.
            add_up: sums a float64 array of any shape over the ranks.
        """
        self._catch_up(lambda deferred: not deferred.rids.isdisjoint(rids))
        # Of calls each rank has as many: none of them skips what another adds up. Steps are priced for all ranks.
        entries = [entry for entry in map(self._entry, rids) if entry.fresh[1]]
        if entries:
            for entry, found in zip(entries, add_up(np.stack([entry.fresh for entry in entries])), strict=True):
                entry.settled += found
                entry.fresh[:] = 0

    def pack(self, rid: str, steps: int | None = None, inside: Inside | None = None) -> bytes:
        """The request's account so far; empty for an unknown request.

        Args:
            rid: the request.
            steps: decode steps that belong to it, of :meth:`steps`; later ones are left for a later call.
            inside: which of them lie in a reasoning span that decodes densely; none without it.
        """
        self._catch_up(lambda deferred: rid in deferred.rids)
        entry = self._entries.get(rid)
        if entry is None:
            return b""
        self._enter_steps(entry, len(entry.steps) if steps is None else max(steps - entry.entered, 0), inside)
        whole = entry.settled + entry.fresh
        sparse_calls, calls, mass, rows = whole[:_COUNTS]
        head = (self._layers, int(sparse_calls), int(calls), entry.reasoning, mass, int(rows))
        return _HEADER.pack(*head) + whole[_COUNTS:].tobytes()

    def _enter_steps(self, entry: _Entry, count: int, inside: Inside | None) -> None:
        if not entry.steps[:count] or self._priced is None:
            return
        layers, prices, heads, ranks = self._priced
        signed = np.array(entry.steps[:count])
        del entry.steps[:count]
        entry.entered += len(signed)
        lengths, dense = np.abs(signed), signed < 0
        if inside is not None:
            held = inside(lengths)
            entry.reasoning += int(held.sum())
            dense |= held
        attended = prices[entry.tier](lengths, dense)
        entry.settled[:2] += ((attended < lengths).sum() * ranks, attended.size * ranks)
        table = self._table(entry.settled)
        table[layers, DECODE, 0] += attended.sum(1) * (heads * ranks)
        table[layers, DECODE, 1] += lengths.sum() * (heads * ranks)

    def _table(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return counts[_COUNTS:].reshape(self._layers, 2, FIELDS)

    def _entry(self, rid: str) -> _Entry:
        entry = self._entries.get(rid)
        if entry is None:
            entry = _Entry(self._layers)
            if rid == NOBODY:
                return entry
            self._entries[rid] = entry
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(rid)
        return entry
