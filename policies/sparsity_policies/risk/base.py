"""The model that comes with the package: learnt from its texts, kept in a file of whole numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from sparsity_policies.risk.calibration import Platt, platt
from sparsity_policies.risk.corpus import RISKY, Labelled, Terms
from sparsity_policies.risk.examples import term_lists, windows
from sparsity_policies.risk.model import Head, RiskModel
from sparsity_policies.risk.training import Features, features_of, learn

FILE: Final = "model.npz"
_EPOCHS: Final = 8
# Times that a text is shown among others, beside alone.
_AMONG: Final = 1
_LEVELS: Final = 127


class Base(NamedTuple):
    """The shipped model.

    Attributes:
        model: its heads.
        exemplars: by domain, those of the shipped policies that it has learnt.
        data: digest of the texts that it was learnt from.
    """

    model: RiskModel
    exemplars: Mapping[str, tuple[str, ...]]
    data: str


@cache
def base() -> Base:
    """Reads it once a process."""
    content = (resources.files("sparsity_policies.risk") / FILE).read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        told = json.loads(str(file["about"]))
        heads = [
            Head(
                domain,
                file["weights"][number].astype(np.float32) * np.float32(file["scales"][number]),
                *(float(value) for value in file["lines"][number]),
            )
            for number, domain in enumerate(told["domains"])
        ]
    return Base(RiskModel(heads), {key: tuple(texts) for key, texts in told["exemplars"].items()}, told["data"])


def save(path: Path, model: RiskModel, exemplars: Mapping[str, Sequence[str]], data: str) -> None:
    """Writes what :func:`base` reads."""
    scales = np.array([max(float(np.quantile(np.abs(head.weights), 0.9999)), 1e-6) / _LEVELS for head in model.heads])
    whole = [
        np.clip(np.rint(head.weights / scale), -_LEVELS, _LEVELS).astype(np.int8)
        for head, scale in zip(model.heads, scales, strict=True)
    ]
    about = {"domains": [head.domain for head in model.heads], "exemplars": dict(exemplars), "data": data}
    np.savez_compressed(
        path,
        about=np.array(json.dumps(about, sort_keys=True)),
        weights=np.array(whole),
        scales=scales,
        lines=np.array([[head.bias, head.slope, head.intercept] for head in model.heads]),
    )


def learnt(
    train: Sequence[Labelled],
    terms: Sequence[Terms],
    calibration: Sequence[Labelled],
    exemplars: Mapping[str, Sequence[str]],
) -> RiskModel:
    """The model of labelled texts, lists of terms and the exemplars of the shipped policies."""
    own = [(domain, text) for domain, texts in sorted(exemplars.items()) for text in texts]
    shown = [*windows(train, _AMONG), *term_lists(terms, train), *own]
    low = sorted({domain for domain, _ in shown} - {"", *RISKY})
    domains = [*(domain for domain in RISKY if any(label == domain for label, _ in shown)), *low]
    found = learn([(domain, features_of(text)) for domain, text in shown], domains, frozenset(RISKY), _EPOCHS)
    heads = [Head(d, found.weights[:, n], float(found.biases[n])) for n, d in enumerate(domains)]
    return RiskModel(calibrated(heads, calibration))


def calibrated(heads: Sequence[Head], texts: Sequence[Labelled]) -> list[Head]:
    """The heads with probabilities as ``texts`` bear them out; a head that they do not tell of keeps its own."""
    shown = windows(texts, 0)
    if not shown:
        return list(heads)
    features = [features_of(text) for _, text in shown]
    found = []
    for head in heads:
        labels = np.array([domain == head.domain for domain, _ in shown])
        line = Platt(head.slope, head.intercept)
        if labels.any() and not labels.all():
            others = np.array([domain not in RISKY or head.domain not in RISKY for domain, _ in shown]) | labels
            margins = np.array([margin(head, each) for each in features])
            line = platt(margins[others], labels[others])
        found.append(head._replace(slope=line.slope, intercept=line.intercept))
    return found


def margin(head: Head, features: Features) -> float:
    """A text's margin by one head."""
    return float(features.values @ head.weights[features.rows]) + head.bias
