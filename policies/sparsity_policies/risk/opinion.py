"""A second opinion: a small net over what a part of a text means, and what its word makes of the linear model's.

The net reads vectors of a sentence encoder, which is not here: whoever has one asks it of the few parts that the linear
model finds likely. What nobody was asked about stays as the linear model has it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_policies.risk.corpus import RISKY
from sparsity_policies.risk.likely import Likely
from sparsity_policies.risk.model import Closer, Scores, Window, chance

FILE: Final = "opinion.npz"
# Parts of a prompt that are read at most, and log odds of one that is worth it.
MOST: Final = 8
LEAST: Final = -4.0

Floats = NDArray[np.float32]
# Log odds of each domain of the net, by the text of a part.
Opinions = Mapping[str, Sequence[float]]


class Line(NamedTuple):
    """Log odds of both together: ``first * linear + second * net + intercept``, of a window by itself."""

    first: float
    second: float
    intercept: float


class Net(NamedTuple):
    """One hidden layer.

    Attributes:
        middle: of each number of a vector.
        scales: by which they are made as wide.
        hidden: weights, (numbers, units).
        hidden_bias: (units,).
        out: weights, (units, domains).
        out_bias: (domains,).
    """

    middle: Floats
    scales: Floats
    hidden: Floats
    hidden_bias: Floats
    out: Floats
    out_bias: Floats

    def odds(self, vectors: Floats) -> Floats:
        """Log odds of each domain, (texts, domains)."""
        units = np.maximum((vectors - self.middle) * self.scales @ self.hidden + self.hidden_bias, 0)
        return np.asarray(units @ self.out + self.out_bias, np.float32)


class Second(NamedTuple):
    """What is shipped.

    Attributes:
        net: it has a column for each of ``RISKY``.
        line: how its word counts.
        data: digest of the texts that it was learnt from.
    """

    net: Net
    line: Line
    data: str


@cache
def second() -> Second:
    """Reads it once a process."""
    content = (resources.files("sparsity_policies.risk") / FILE).read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        told = json.loads(str(file["about"]))
        net = Net(*(file[name].astype(np.float32) for name in Net._fields))
    return Second(net, Line(*told["line"]), told["data"])


def save(path: Path, found: Second) -> None:
    """Writes what :func:`second` reads, in half precision."""
    about = json.dumps({"line": list(found.line), "data": found.data})
    arrays = {name: values.astype(np.float16) for name, values in found.net._asdict().items()}
    np.savez_compressed(path, about=np.array(about), **arrays)


def closer(asked: Collection[str], taught: Collection[str]) -> Closer | None:
    """Which parts are worth a second opinion; None where it could say nothing.

    Args:
        asked: domains that the text is held against.
        taught: those that have learnt a policy's own exemplars, which the net has not.
    """
    domains = [domain for domain in RISKY if domain in asked and domain not in taught]
    return Closer(domains, MOST, LEAST) if domains else None


def opined(scores: Scores, opinions: Opinions) -> Scores:
    """The scores with second opinions: each confirms or withdraws what the linear model says of a part."""
    read = [(part, opinions[part.text]) for part in scores.likely if part.text in opinions]
    if not read:
        return scores
    peaks = dict(scores.peaks)
    for domain in read[0][0].odds:
        others = [_window(part, domain) for part in scores.likely if part.text not in opinions]
        if domain in scores.left:
            others.append(scores.left[domain])
        held = [_held(part, domain, told[RISKY.index(domain)], scores.tries) for part, told in read]
        peaks[domain] = max((*held, *others), key=lambda window: window.probability)
    return scores._replace(peaks=peaks)


def _window(part: Likely, domain: str) -> Window:
    return Window(part.start, part.end, chance(part.odds[domain]))


def _held(part: Likely, domain: str, told: float, tries: float) -> Window:
    line, first = second().line, part.odds[domain]
    both = line.first * (first + tries) + line.second * told + line.intercept - tries
    return Window(part.start, part.end, chance(both), chance(first), chance(told))
