"""What a request costs a worker at each tier, from a result file of `make bench-serving`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.tiers import Tier

# The result file of a clone; images and wheels have none.
COMMITTED = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "serving.json"
_PREFILL = re.compile(r"(?P<model>.*), (?P<tokens>\d+) tokens, density [\d.]+")
_STEP = re.compile(r"(?P<model>.*), (?P<batch>\d+) x (?P<tokens>\d+) tokens, density [\d.]+")
# The context that decoding was timed at, alone and in a batch.
_CONTEXT, _ALONE, _BATCH = 32768, 1, 8


class _Figure:
    """A row's value, and how many times as fast it was as the dense tier of its own run."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.value = float(row["value"])
        self.ratio = float(row["ratio"]) if row.get("ratio") else None

    def beside(self, dense: _Figure | None) -> float:
        """What it would have been in the run that ``dense`` is of: devices and hosts differ from run to run."""
        return self.value if self.ratio is None or dense is None else dense.value / self.ratio


_Rows = Mapping[tuple[str, str], _Figure]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one tier took on one GPU.

    Attributes:
        prefill: seconds to the first token by prompt tokens.
        alone: seconds a token of one sequence of 32,768 tokens.
        batch: seconds a token of eight such sequences at once.
    """

    prefill: Mapping[int, float]
    alone: float
    batch: float

    def prefill_seconds(self, tokens: int) -> float:
        """Of a prompt, on the line between the measured lengths that it lies between."""
        known = sorted(self.prefill)
        above = next(length for length in known[1:] if length >= tokens)
        below = known[known.index(above) - 1]
        share = (tokens - below) / (above - below)
        return self.prefill[below] + share * (self.prefill[above] - self.prefill[below])

    @property
    def sequence_seconds(self) -> float:
        """What a sequence of 32,768 tokens adds to a decode step."""
        return (self.batch - self.alone) / (_BATCH - _ALONE)

    @property
    def step_seconds(self) -> float:
        """What a decode step takes whatever its sequences: the weights are read once for all of them."""
        return self.alone - self.sequence_seconds


@dataclass(frozen=True, slots=True)
class Costs:
    """The result file.

    Attributes:
        device: what it was measured on.
        model: what was measured.
        tiers: the figures by tier, of workers that serve one each.
        shared: of a worker that serves every tier; the same where none was measured. Its steps are those of `tiers`:
            its own were timed in a batch only, and were no slower there.
    """

    device: str
    model: str
    tiers: Mapping[Tier, Measured]
    shared: Mapping[Tier, Measured]

    @property
    def lengths(self) -> tuple[int, int]:
        """The shortest and the longest prompt that every tier was measured at."""
        found = [each[tier].prefill for each in (self.tiers, self.shared) for tier in Tier]
        return max(map(min, found)), min(map(max, found))

    def seconds(self, tier: Tier, prompt_tokens: int, new_tokens: int, places: int, *, shared: bool = False) -> float:
        """Of a GPU for one request in a worker whose ``places`` are taken, one of the tier's own or a ``shared`` one.

        Raises:
            InvalidRequestError: for a prompt of a length that nothing was measured near.
        """
        least, most = self.lengths
        if not least <= prompt_tokens <= most:
            raise InvalidRequestError.of("--prompt-tokens", f"was measured from {least} to {most}, not {prompt_tokens}")
        of = self.shared if shared else self.tiers
        own, dense = of[tier], of[Tier.DENSE]
        # Dense attention reads the whole context; a sparse tier its budget, or what there is of less.
        whole = dense.sequence_seconds * prompt_tokens / _CONTEXT
        reading = whole if tier is Tier.DENSE else min(own.sequence_seconds, whole)
        return own.prefill_seconds(prompt_tokens) + new_tokens * (own.step_seconds / places + reading)


def read_costs(path: Path) -> Costs:
    """Reads a result file.

    Raises:
        InvalidRequestError: when it cannot be read, or lacks a tier's times.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = {(row["name"], row["shape"]): _Figure(row) for row in document["rows"] if row["value"]}
        device, model = str(document["header"]["device"]), str(document["header"]["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{path}: no result file of `make bench-serving` ({type(error).__name__}); a clone has one in docs"
        raise InvalidRequestError.of("--results", problem) from error
    tiers = {tier: _measured(rows, tier, path) for tier in Tier}
    shared = {tier: _prefill(rows, f"shared-{tier.word}") for tier in Tier}
    measured = all(len(prefill) > 1 for prefill in shared.values())
    beside = {tier: replace(tiers[tier], prefill=prefill) for tier, prefill in shared.items()}
    return Costs(device, model, tiers, beside if measured else tiers)


def _seconds(rows: _Rows, variant: str, figure: str, shaped: re.Pattern[str]) -> dict[tuple[int, int], float]:
    """Of a figure by how many prompts there are at once and their tokens, as if all had been measured in one run."""
    dense = _figures(rows, f"{Tier.DENSE.word}: {figure}", shaped)
    return {at: own.beside(dense.get(at)) for at, own in _figures(rows, f"{variant}: {figure}", shaped).items()}


def _figures(rows: _Rows, of: str, shaped: re.Pattern[str]) -> dict[tuple[int, int], _Figure]:
    shapes = ((shaped.fullmatch(shape), row) for (name, shape), row in rows.items() if name == of)
    return {(int(found.groupdict().get("batch", 1)), int(found["tokens"])): row for found, row in shapes if found}


def _prefill(rows: _Rows, variant: str) -> dict[int, float]:
    """Seconds to the first token by prompt tokens."""
    of = _seconds(rows, variant, "time to first token", _PREFILL)
    return {tokens: seconds for (_, tokens), seconds in of.items()}


def _measured(rows: _Rows, tier: Tier, path: Path) -> Measured:
    prefill = _prefill(rows, tier.word)
    steps = _seconds(rows, tier.word, "time per output token", _STEP)
    wanted = (_ALONE, _CONTEXT), (_BATCH, _CONTEXT)
    if len(prefill) < 2 or not all(key in steps for key in wanted):
        raise InvalidRequestError.of("--results", f"{path}: lacks times of the {tier.word} tier")
    alone, batch = (steps[key] for key in wanted)
    return Measured(prefill, alone, batch)
