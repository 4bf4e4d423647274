"""Counts what the backend attended for each request, and packs it for the way out of the scheduler."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sparse_kernels.stats import AttentionStats

from sparsity_worker.plugin import NOBODY

PREFILL: Final = 0
DECODE: Final = 1
_HEADER = struct.Struct("<IQQQdQ")
# Per layer and phase: attended pairs, causal pairs, coverage summed over rows, rows.
_FIELDS: Final = 4


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
        if len(packed) != _HEADER.size + layers * 2 * _FIELDS * 8:
            raise ValueError(f"account: {len(packed)} bytes do not make {layers} layers")
        body = np.frombuffer(packed, dtype=np.float64, offset=_HEADER.size)
        return cls(sparse_calls, calls, reasoning, mass / rows if rows else 1.0, rows, body.reshape(layers, 2, _FIELDS))

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


class _Entry:
    """What was attended, over all ranks, and what this rank attended since they last added up."""

    __slots__ = ("fresh", "reasoning", "settled")

    def __init__(self, layers: int) -> None:
        self.settled = np.zeros(_COUNTS + layers * 2 * _FIELDS)
        self.fresh = np.zeros_like(self.settled)
        self.reasoning = 0

    def table(self, layers: int) -> NDArray[np.float64]:
        """The fresh part of the table, to add to."""
        return self.fresh[_COUNTS:].reshape(layers, 2, _FIELDS)


class Ledger:
    """Accounts of the requests in flight, by request id; bounded, oldest dropped first; none for `NOBODY`."""

    def __init__(self, layers: int, capacity: int) -> None:
        self._layers = layers
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, rid: str, layer: int, phase: int, stats: AttentionStats) -> None:
        """Books one kernel call."""
        entry = self._entry(rid)
        entry.fresh[:2] += (stats.attended < stats.causal, 1)
        if stats.measured_rows:
            self.measured(rid, stats.measured, stats.measured_rows)
        entry.table(self._layers)[layer, phase] += (
            stats.attended, stats.causal, stats.coverage * stats.rows, stats.rows,
        )  # fmt: skip

    def add_layers(self, rid: str, phase: int, layers: Sequence[int], table: NDArray[np.float64]) -> None:
        """Books one call of each layer at once.

        Args:
            rid: the request.
            phase: `PREFILL` or `DECODE`.
            layers: their numbers.
            table: float64 ``[layers, 4]``: attended pairs, causal pairs, coverage summed over rows, rows.
        """
        entry = self._entry(rid)
        entry.fresh[:2] += ((table[:, 0] < table[:, 1]).sum(), len(layers))
        entry.table(self._layers)[layers, phase] += table

    def measured(self, rid: str, share: float, rows: int) -> None:
        """Books that ``rows`` rows kept ``share`` of their softmax mass, as measured."""
        self._entry(rid).fresh[2:_COUNTS] += (share * rows, rows)

    def reasoned(self, rid: str) -> None:
        """Books one token that decodes densely because it lies in a reasoning span."""
        self._entry(rid).reasoning += 1

    def settle(self, rids: Sequence[str], add_up: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        """Adds up what the ranks attended; every rank must call it after the same batches.

        Args:
            rids: the batch's requests, in an order that all ranks have.
            add_up: sums a float64 array of any shape over the ranks.
        """
        entries = [self._entry(rid) for rid in rids]
        if entries:
            for entry, found in zip(entries, add_up(np.stack([entry.fresh for entry in entries])), strict=True):
                entry.settled += found
                entry.fresh[:] = 0

    def _entry(self, rid: str) -> _Entry:
        entry = self._entries.get(rid)
        if entry is None:
            entry = _Entry(self._layers)
            if rid == NOBODY:
                return entry
            self._entries[rid] = entry
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        return entry

    def pack(self, rid: str) -> bytes:
        """The request's account so far; empty for an unknown request."""
        entry = self._entries.get(rid)
        if entry is None:
            return b""
        self._entries.move_to_end(rid)
        whole = entry.settled + entry.fresh
        sparse_calls, calls, mass, rows = whole[:_COUNTS]
        head = (self._layers, int(sparse_calls), int(calls), entry.reasoning, mass, int(rows))
        return _HEADER.pack(*head) + whole[_COUNTS:].tobytes()
