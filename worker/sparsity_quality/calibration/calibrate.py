"""Calibration from beginning to end: curves, a weight for each layer, the choice, and a check on text held out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sparse_kernels.huggingface.needs import Needs, knob_for
from sparse_kernels.schedule import LayerSchedule, SparseAttention
from sparse_kernels.selectors import own
from sparsity_rpc.errors import ConfigurationError

from sparsity_quality.calibration import choice
from sparsity_quality.calibration.curves import BUDGETS, THRESHOLDS, Curves, measure_curves
from sparsity_quality.calibration.target import Target
from sparsity_quality.subjects.model import DENSE, LocalModel
from sparsity_quality.subjects.reading import follow

# A layer is weighed at this threshold: low enough that its loss stands out.
_WEIGHED_AT = 0.5
_PRICES = 6
# Of the error that prefill makes a decoded token may make so much: what it says cannot be averaged over later ones.
_DECODED = 0.25
# Means of more blocks are taken where they raise divergence by no more than this share.
_COARSER = 0.02


@dataclass(frozen=True, slots=True)
class Texts:
    """What is read.

    Attributes:
        learned: token ids of the texts that curves are measured on; the last is the longest.
        weighed: of the text that layers are weighed on.
        checked: of the texts that a loss target is checked on while prices are searched.
        held_out: of the texts that only the final report sees.
    """

    learned: Sequence[tuple[int, ...]]
    weighed: tuple[int, ...]
    checked: Sequence[tuple[int, ...]]
    held_out: Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came out.

    Attributes:
        attention: the learned profile.
        report: figures on the calibration texts and on those held out, beside a single threshold of the same density.
    """

    attention: SparseAttention
    report: Mapping[str, Any]


class Calibration:
    """One model, one base profile, one set of texts; every step is cached, so that several targets share the work.

    ``mean_blocks`` are the numbers of blocks behind a mean to choose from, by the divergence on the texts that are
    checked: the most whose divergence is within 2 % of the least. Without them the base's stays.
    """

    def __init__(
        self,
        model: LocalModel,
        base: SparseAttention,
        texts: Texts,
        said: Callable[[str], None],
        mean_blocks: Sequence[int] = (),
    ) -> None:
        if mean_blocks and not base.prefill.mean_correction:
            raise ConfigurationError("--mean-blocks: the base profile corrects no means")
        if base.prefill.rule != "top_p":
            raise ConfigurationError(f"--base: thresholds of rule top_p are learned, not of {base.prefill.rule}")
        # Every layer may be sparse: which stay dense is for the data to say.
        prefill = replace(base.prefill, head_thresholds=(), sparse_from=0)
        self._model, self._texts, self._said = model, texts, said
        self._base = replace(base, prefill=prefill, layers={}, dense_layers=frozenset())
        self._given, self._units = base, sorted(set(mean_blocks))
        self._started = time.monotonic()
        self._curves: Curves | None = None
        self._weights: torch.Tensor | None = None
        self._dense: dict[tuple[int, ...], torch.Tensor] = {}

    def reach(self, target: Target) -> Calibrated:
        """The profile of least density that reaches the target; of least loss at a target density."""
        curves, weights = self._learned()
        loss = 1 - curves.coverage if target.name == "coverage" else curves.error * weights[:, None, None]
        density, loss = curves.density.flatten(0, 1), loss.flatten(0, 1)
        if target.name == "coverage":
            chosen = choice.least_density(density, loss, 1 - target.value)
        elif target.name == "density":
            chosen = choice.least_loss(density, loss, target.value)
        else:
            chosen = self._search(target, density, loss)
        attention, units = self._coarsened(self._schedule(chosen, curves, weights))
        return Calibrated(attention, self._report(target, attention, chosen) | units)

    def _coarsened(self, attention: SparseAttention) -> tuple[SparseAttention, dict[str, Any]]:
        """With the most blocks behind a mean that cost next to nothing; and what each number costs."""
        if not self._units:
            return attention, {}
        each = {unit: replace(attention, prefill=replace(attention.prefill, mean_blocks=unit)) for unit in self._units}
        found = {unit: self._judge(one, self._texts.checked)["divergence"] for unit, one in each.items()}
        self._said(f"divergence by blocks behind a mean: {found}")
        chosen = max(unit for unit in found if found[unit] <= (1 + _COARSER) * min(found.values()))
        return each[chosen], {"divergence_by_mean_blocks": found}

    def _search(self, target: Target, density: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """Bisects the mean density until the measured loss meets the target on the texts that are checked."""
        low, high = float(density.amin(1).mean()), float(density.amax(1).mean())
        best = density.argmax(1)
        curves, weights = self._learned()
        for _ in range(_PRICES):
            middle = (low + high) / 2
            chosen = choice.least_loss(density, loss, middle)
            found = self._judge(self._schedule(chosen, curves, weights), self._texts.checked)
            self._said(f"density {middle:.3f}: {target.name} {found[target.name]:.4f}, wanted {target.value:g} or less")
            if found[target.name] <= target.value:
                best, high = chosen, middle
            else:
                low = middle
        return best

    def _learned(self) -> tuple[Curves, torch.Tensor]:
        if self._curves is None or self._weights is None:
            self._curves = measure_curves(self._model, self._texts.learned, self._base, self._said)
            self._weights = self._weigh(self._curves)
        return self._curves, self._weights

    def _weigh(self, curves: Curves) -> torch.Tensor:
        """What a unit of error in each layer costs in divergence, float64 ``[layers]``, with a mean of one.

        Each layer alone attends sparsely while all others are dense.
        """
        tokens = self._texts.weighed
        true = self._true(tokens)
        everything = frozenset(range(self._model.layers))
        errors = curves.error[..., THRESHOLDS.index(_WEIGHED_AT)].sum(1)
        found = torch.zeros(self._model.layers, dtype=torch.float64)
        for layer in sorted(everything):
            prefill = replace(self._base.prefill, threshold=_WEIGHED_AT)
            alone = replace(self._base, prefill=prefill, dense_layers=everything - {layer})
            hidden, _ = self._model.hidden(tokens, alone)
            found[layer] = follow(self._model, tokens, hidden, true).divergence / float(errors[layer].clamp_min(1e-12))
            self._said(f"layer {layer} of {self._model.layers} weighed")
        return found / found.mean()

    def _schedule(self, chosen: torch.Tensor, curves: Curves, weights: torch.Tensor) -> SparseAttention:
        """The choice of thresholds as a profile, with decode budgets that err no more than prefill does."""
        each = chosen.view(self._model.layers, -1)
        error = curves.error.gather(2, each[..., None])[..., 0].sum(1) * weights
        budgets = choice.least_density(
            curves.decode_density, curves.decode_error * weights[:, None], _DECODED * float(error.mean())
        )
        whole = len(THRESHOLDS) - 1
        dense = frozenset(layer for layer in range(self._model.layers) if bool((each[layer] == whole).all()))
        layers = {
            layer: LayerSchedule(tuple(THRESHOLDS[number] for number in each[layer]), BUDGETS[int(budgets[layer])])
            for layer in range(self._model.layers)
            if layer not in dense
        }
        decode = self._given.decode
        smallest = min((layer.budget or decode.budget for layer in layers.values()), default=decode.budget)
        decode = replace(decode, sink=min(decode.sink, smallest // 4), recent=min(decode.recent, smallest // 2))
        return replace(self._given, decode=decode, layers=layers, dense_layers=dense)

    def _true(self, tokens: tuple[int, ...]) -> torch.Tensor:
        if tokens not in self._dense:
            self._dense[tokens] = self._model.hidden(tokens, DENSE)[0]
        return self._dense[tokens]

    def _judge(self, attention: SparseAttention, texts: Sequence[tuple[int, ...]]) -> dict[str, float]:
        attention = replace(attention, prefill=replace(attention.prefill, sparse_from=0))
        sums = dict.fromkeys(("density", "coverage", "perplexity", "divergence"), 0.0)
        for tokens in texts:
            true = self._true(tokens)
            hidden, read = self._model.hidden(tokens, attention)
            found, own = follow(self._model, tokens, hidden, true), follow(self._model, tokens, true, true)
            figures = (read.density, read.coverage, math.exp(found.loss - own.loss), found.divergence)
            for name, value in zip(sums, figures, strict=True):
                sums[name] += value / len(texts)
        return {name: round(value, 5) for name, value in sums.items()}

    def _report(self, target: Target, attention: SparseAttention, chosen: torch.Tensor) -> dict[str, Any]:
        held_out = self._judge(attention, self._texts.held_out)
        self._said(f"held out: {held_out}")
        # One threshold, set to the same density by the same texts that the others were learned from.
        longest = self._texts.learned[-1]
        given = replace(self._given, layers={}, prefill=replace(self._given.prefill, sparse_from=0))
        rival = own(given.prefill, "one threshold", "uncalibrated")
        needs = Needs(self._model.model, longest, [rival.base], given.block_size, given.sub_block)
        _, read = self._model.hidden(longest, replace(attention, prefill=replace(attention.prefill, sparse_from=0)))
        sparse = [layer for layer in needs.layers if layer not in given.dense_layers] or needs.layers
        wanted = (read.density * len(needs.layers) - len(needs.layers) + len(sparse)) / len(sparse)
        knob = knob_for(rival, needs, wanted, sparse)
        single = replace(given, prefill=rival.turned(rival.base, knob, len(longest)))
        return {
            "target": f"{target.name}={target.value:g}",
            "learned": self._judge(attention, self._texts.learned),
            "held_out": held_out,
            "one_threshold": {"threshold": round(single.prefill.threshold, 4)}
            | self._judge(single, self._texts.held_out),
            "seconds": round(time.monotonic() - self._started),
        }
