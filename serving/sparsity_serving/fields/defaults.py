"""How a model is sampled where its caller does not say: by its generation_config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import ConfigurationError

FILE = "generation_config.json"
_PENALTIES = ("repetition_penalty",)
_SHAPES = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is set where a request leaves it unset; None leaves it so.

    Attributes:
        temperature: of models that are to be sampled; others are greedy.
        top_p: nucleus mass.
        top_k: candidates kept.
        min_p: least share of the likeliest token's probability.
        repetition_penalty: 1 has no effect.
        max_new_tokens: of an answer; a router holds it to what there is room for.
        ends: token ids that end a turn.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    ends: frozenset[int] = frozenset()

    @classmethod
    def read(cls, model_path: Path) -> Defaults:
        """Reads the model's file; a model without one has no defaults.

        Raises:
            ConfigurationError: when it cannot be used.
        """
        path = model_path / FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            penalty = _within(document, "repetition_penalty", 2.0) or None
            ends = ends_of(document)
            most = _count(document, "max_new_tokens")
            if not document.get("do_sample"):
                return cls(repetition_penalty=penalty, max_new_tokens=most, ends=ends)
            top_k = int(document.get("top_k") or 0)
            return cls(
                # That of transformers, which the file leaves out where it is meant.
                temperature=_within(document, "temperature", 2.0, 1.0),
                top_p=_within(document, "top_p", 1.0) or None,
                top_k=top_k if top_k > 0 else None,
                min_p=_within(document, "min_p", 1.0),
                repetition_penalty=penalty,
                max_new_tokens=most,
                ends=ends,
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"--model: {path}: {type(error).__name__}: {error}") from error

    def fill(self, sampling: inference_pb2.SamplingParams) -> None:
        """Sets what ``sampling`` leaves unset; where its caller wants it greedy, nothing that shapes sampling."""
        greedy = sampling.HasField("temperature") and sampling.temperature == 0
        for name in _PENALTIES if greedy else (*_PENALTIES, *_SHAPES):
            value = getattr(self, name)
            if value is not None and not sampling.HasField(name):  # type: ignore[arg-type]
                setattr(sampling, name, value)


def ends_of(document: dict[str, Any]) -> frozenset[int]:
    """The token ids that end a turn, of a model's config or of its generation_config."""
    ends = document.get("eos_token_id")
    return frozenset(ends if isinstance(ends, list) else () if ends is None else (int(ends),))


def _count(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and int(value) < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")
    return None if value is None else int(value)


def _within(document: dict[str, Any], name: str, most: float, otherwise: float | None = None) -> float | None:
    value = document.get(name)
    if value is None:
        return otherwise
    found = float(value)
    if not 0 <= found <= most:
        raise ValueError(f"{name} must be in [0, {most:g}], not {found:g}")
    return found
