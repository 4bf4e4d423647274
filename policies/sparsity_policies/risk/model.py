"""The linear model: what every window of a text says of every domain, and how sure that is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.features import Codes, blocks, codes_of, width
from sparsity_policies.risk.likely import Likely, choose
from sparsity_policies.risk.scripts import SCRIPTS, Line, scripts_of
from sparsity_policies.risk.windows import Places, windows_of

# Characters from which a text is long enough to tell.
_SHORT: Final = 64
# How far the odds of the best of many windows are lowered, by the logarithm of their number.
_TRIES: Final = 0.45
# Sums of four domains lie in one machine word, so that one look into the table serves all four.
_LANES: Final = 4
_LANE_BITS: Final = 16
# Weights are whole numbers from 0 to 255 around this one: 256 of them add up to less than a lane holds.
_ZERO: Final = 128
_MOST: Final = 127

Weights = NDArray[np.float32]


class Window(NamedTuple):
    """A part of a text, and how likely it is of a domain.

    Attributes:
        start: its first character in the text as it is read (see :func:`.features.codes_of`).
        end: the one behind its last.
        probability: calibrated, in [0, 1].
        first: what it was before a second opinion; None where there is none.
        second: the second opinion by itself.
    """

    start: int
    end: int
    probability: float
    first: float | None = None
    second: float | None = None


class Scores(NamedTuple):
    """What a model makes of a text.

    Attributes:
        peaks: by domain, the window that is most likely of it.
        means: by domain, the margin over all windows on average, in log odds: for a comparison between domains.
        likely: parts of the text to be read more closely; none where nobody asked for any.
        left: by domain, the most likely window in none of them.
        tries: by which log odds were lowered for the number of windows.
    """

    peaks: Mapping[str, Window]
    means: Mapping[str, float]
    likely: tuple[Likely, ...] = ()
    left: Mapping[str, Window] = {}
    tries: float = 0.0


NOTHING: Final = Scores({}, {})


class Closer(NamedTuple):
    """Which parts of a text are read more closely.

    Attributes:
        domains: those that may be likely.
        most: parts at most.
        least: log odds of a window that is likely enough.
    """

    domains: Collection[str]
    most: int
    least: float


class Head(NamedTuple):
    """One domain's part of a model.

    Attributes:
        domain: its name.
        weights: of each row of features, (rows in all,) float32.
        bias: of its margin.
        slope: of the log odds over the margin.
        intercept: of them, likewise (Platt, 1999).
    """

    domain: str
    weights: Weights
    bias: float
    slope: float = 1.0
    intercept: float = 0.0


def length_norm(characters: NDArray[np.float64] | float) -> NDArray[np.float64] | float:
    """What a sum over a window is divided by: between a sum and a mean, so that neither a word nor a page says all."""
    norm: NDArray[np.float64] | float = np.sqrt(np.maximum(characters, 1.0) + _SHORT)
    return norm


class RiskModel:
    """Heads, packed for speed; immutable.

    Args:
        heads: one a domain.
        lines: by script, how its odds are read; scripts that are not there are read as they are.
    """

    def __init__(self, heads: Sequence[Head] = (), lines: Mapping[str, Line] | None = None) -> None:
        self.heads = tuple(heads)
        self.lines = dict(lines or {})
        known = [self.lines.get(script, Line()) for script in SCRIPTS]
        self._slopes = np.array([line.slope for line in known])
        self._intercepts = np.array([line.intercept for line in known])
        self.domains = frozenset(head.domain for head in heads)
        self._packs = [_Pack(self.heads[at : at + _LANES]) for at in range(0, len(heads), _LANES)]

    def scores(self, text: str, domains: Collection[str] | None = None, closer: Closer | None = None) -> Scores:
        """Reads all of ``text``.

        Args:
            text: of any length.
            domains: whose scores are wanted; None wants all.
            closer: which parts of it are to be read more closely; None for none.
        """
        packs = [pack for pack in self._packs if domains is None or not pack.domains.isdisjoint(domains)]
        codes = codes_of(text)
        if not packs or not len(codes):
            return NOTHING
        starts, ends, units = windows_of(codes)
        norms = length_norm((ends - starts).astype(np.float64))
        first, last = np.searchsorted(units, starts), np.searchsorted(units, ends)
        scripts = scripts_of(codes, starts, ends)
        slopes, intercepts = self._slopes[scripts, None], self._intercepts[scripts, None]
        # Of many windows one is the most likely by chance: the odds are those of a prompt, whatever its length.
        tries = float(_TRIES * np.log(len(starts)))
        peaks: dict[str, Window] = {}
        means: dict[str, float] = {}
        doubtful: dict[str, NDArray[np.float64]] = {}
        for pack, sums in zip(packs, _sums(codes, units, packs), strict=True):
            margins = (sums[last] - sums[first]) * pack.scales / norms[:, None] + pack.biases  # type: ignore[index]
            odds = slopes * (margins * pack.slopes + pack.intercepts) + intercepts
            for lane, head in enumerate(pack.heads):
                if domains is None or head.domain in domains:
                    own = odds[:, lane] - tries
                    peaks[head.domain] = _peak(starts, ends, own)
                    means[head.domain] = float(odds[:, lane].mean())
                    if closer and head.domain in closer.domains:
                        doubtful[head.domain] = own
        if closer is None or not doubtful:
            return Scores(peaks, means)
        table = np.stack(list(doubtful.values()), axis=1)
        chosen = choose(text, codes, (starts, ends), table, list(doubtful), closer.most, closer.least)
        if not chosen.parts or not chosen.left.any():
            return Scores(peaks, means, chosen.parts, {}, tries)
        first, last = starts[chosen.left], ends[chosen.left]
        left = {domain: _peak(first, last, own[chosen.left]) for domain, own in doubtful.items()}
        return Scores(peaks, means, chosen.parts, left, tries)


def _peak(starts: Places, ends: Places, odds: NDArray[np.float64]) -> Window:
    at = int(odds.argmax())
    return Window(int(starts[at]), int(ends[at]), chance(float(odds[at])))


def chance(odds: float) -> float:
    """The probability of log odds."""
    return float(1.0 / (1.0 + np.exp(-np.clip(odds, -50.0, 50.0))))


def _sums(codes: Codes, units: Places, packs: Sequence[_Pack]) -> list[NDArray[np.float64]]:
    """For each pack the sums of weights from the beginning up to each unit, (units + 1, lanes)."""
    found = [np.zeros((len(units) + 1, len(pack.heads))) for pack in packs]
    for block in blocks(codes):
        first, last = np.searchsorted(units, (block.start, block.start + block.length))
        cuts = units[first:last] - block.start
        owners = np.searchsorted(cuts, block.places, side="right") - 1
        words = np.bincount(owners, minlength=len(cuts))
        for pack, sums in zip(packs, found, strict=True):
            part = sums[first + 1 : last + 1]
            for at in range(0, len(block.dense), 2):
                # Two sums of as many as a unit has characters do not leave their lane.
                packed = [np.add.reduceat(pack.table.take(rows), cuts) for rows in block.dense[at : at + 2]]
                part += pack.unpacked(packed[0] if len(packed) == 1 else packed[0] + packed[1])
            part -= _ZERO * len(block.dense) * np.diff(np.append(cuts, block.length))[:, None]
            taken = pack.unpacked(pack.table.take(block.words))
            for lane in range(len(pack.heads)):
                part[:, lane] += np.bincount(owners, taken[:, lane], minlength=len(cuts))
            part -= _ZERO * words[:, None]
    for sums in found:
        np.cumsum(sums, axis=0, out=sums)
    return found


class _Pack:
    """Up to four heads in one table.

    Attributes:
        heads: they.
        domains: theirs.
        table: their weights, 16 bits each, (rows in all,).
        scales: of a weight of one, by head.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = tuple(heads)
        self.domains = {head.domain for head in heads}
        self.table = np.zeros(width(), np.uint64)
        self.scales = np.empty(len(heads))
        for lane, head in enumerate(heads):
            # The few largest weights are cut: a scale that fits them would leave the others no room.
            scale = max(float(np.quantile(np.abs(head.weights), 0.9999)), float(np.abs(head.weights).max()) / 4, 1e-6)
            whole = np.clip(np.rint(head.weights * (_MOST / scale)), -_MOST, _MOST).astype(np.int64) + _ZERO
            self.table |= whole.astype(np.uint64) << np.uint64(lane * _LANE_BITS)
            self.scales[lane] = scale / _MOST
        self.biases = np.array([head.bias for head in heads])
        self.slopes = np.array([head.slope for head in heads])
        self.intercepts = np.array([head.intercept for head in heads])

    def unpacked(self, packed: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """The parts of packed numbers, (n, heads)."""
        return packed.astype("<u8", copy=False).view("<u2").reshape(len(packed), _LANES)[:, : len(self.heads)]
