"""The model that comes with the package: learnt from its texts, kept in a file of whole numbers."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from sparsity_policies.risk.calibration import Platt, platt
from sparsity_policies.risk.corpus import RISKY, Labelled
from sparsity_policies.risk.examples import windows
from sparsity_policies.risk.features import codes_of
from sparsity_policies.risk.model import Head, RiskModel
from sparsity_policies.risk.scripts import SCRIPTS, Line, scripts_of
from sparsity_policies.risk.training import Features, Vectors, features_of, learn

FILE: Final = "model.npz"
_EPOCHS: Final = 8
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
        lines = {script: Line(*values) for script, values in told["lines"].items()}
    return Base(RiskModel(heads, lines), {key: tuple(texts) for key, texts in told["exemplars"].items()}, told["data"])


def save(path: Path, model: RiskModel, exemplars: Mapping[str, Sequence[str]], data: str) -> None:
    """Writes what :func:`base` reads."""
    scales = np.array([max(float(np.quantile(np.abs(head.weights), 0.9999)), 1e-6) / _LEVELS for head in model.heads])
    whole = [
        np.clip(np.rint(head.weights / scale), -_LEVELS, _LEVELS).astype(np.int8)
        for head, scale in zip(model.heads, scales, strict=True)
    ]
    about = {
        "domains": [head.domain for head in model.heads],
        "exemplars": dict(exemplars),
        "data": data,
        "lines": model.lines,
    }
    np.savez_compressed(
        path,
        about=np.array(json.dumps(about, sort_keys=True)),
        weights=np.array(whole),
        scales=scales,
        lines=np.array([[head.bias, head.slope, head.intercept] for head in model.heads]),
    )


def learnt(
    train: Sequence[Labelled],
    calibration: Sequence[Labelled],
    exemplars: Mapping[str, Sequence[str]],
    vectors: Vectors | None = None,
) -> RiskModel:
    """The model of labelled texts and the exemplars of the shipped policies.

    Args:
        train: texts to learn.
        calibration: texts that say how likely a margin makes a domain.
        exemplars: by domain.
        vectors: what each word of the lexicon means.
    """
    own = [(domain, text) for domain, texts in sorted(exemplars.items()) for text in texts]
    shown = [*windows(train), *own]
    low = sorted({domain for domain, _ in shown} - {"", *RISKY})
    domains = [*(domain for domain in RISKY if any(label == domain for label, _ in shown)), *low]
    examples = [(domain, features_of(text)) for domain, text in shown]
    found = learn(examples, domains, frozenset(RISKY), _EPOCHS, vectors=vectors)
    heads = calibrated(
        [Head(d, found.weights[:, n], float(found.biases[n])) for n, d in enumerate(domains)], calibration
    )
    return RiskModel(heads, script_lines(heads, calibration))


def calibrated(heads: Sequence[Head], texts: Sequence[Labelled]) -> list[Head]:
    """The heads with probabilities as ``texts`` bear them out; a head that they do not tell of keeps its own."""
    shown = windows(texts)
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


def script_lines(heads: Sequence[Head], texts: Sequence[Labelled]) -> dict[str, Line]:
    """By script, how the odds of high-risk domains are to be read: of all of them at once, because texts are few."""
    odds, labels = defaultdict[str, list[float]](list), defaultdict[str, list[bool]](list)
    for domain, text in windows(texts):
        features, codes = features_of(text), codes_of(text)
        script = list(SCRIPTS)[int(scripts_of(codes, np.zeros(1, np.int64), np.array([len(codes)]))[0])]
        for head in heads:
            # Another domain's text says nothing of a domain: it may be of both.
            if head.domain in RISKY and (domain == head.domain or domain not in RISKY):
                odds[script].append(head.slope * margin(head, features) + head.intercept)
                labels[script].append(domain == head.domain)
    found = {}
    for script, told in labels.items():
        if any(told) and not all(told):
            line = platt(np.array(odds[script]), np.array(told))
            found[script] = Line(line.slope, line.intercept)
    return found


def margin(head: Head, features: Features) -> float:
    """A text's margin by one head."""
    return float(features.values @ head.weights[features.rows]) + head.bias
