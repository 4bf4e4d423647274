"""Texts as vectors of what they mean, by multilingual-e5-small in numpy (BERT, Devlin et al., NAACL 2019)."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from math import inf, sqrt
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from sparsity_router.prompts.opinion.model_file import Floats, ModelFile, floats

# The layers that are gone through: nets over the mean of the eighth miss fewer risky texts than over that of the last.
LAYERS: Final = 8
# Of a longer text only the beginning is read.
MOST_TOKENS: Final = 126
_PREFIX: Final = "query: "
_WORD_START: Final = "\u2581"


class _Norm(NamedTuple):
    scale: Floats
    shift: Floats


class _Layer(NamedTuple):
    asked: Floats
    asked_bias: Floats
    out: Floats
    out_bias: Floats
    norm: _Norm
    wide: Floats
    wide_bias: Floats
    narrow: Floats
    narrow_bias: Floats
    last_norm: _Norm


class Encoder:
    """Reads texts.

    Args:
        path: of the model file.

    Raises:
        ValueError: when it is none.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            # Of the vocabulary's vectors only those of words that are met come into memory.
            content: bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # type: ignore[assignment]
        model = ModelFile(content)
        self.width, self._heads, self._epsilon = model.width, model.heads, np.float32(model.epsilon)
        self._words = model.blocks("emb.word", model.width)
        self._places = model.tensor("emb.pos", -1, model.width) + model.tensor("emb.type", -1, model.width)[0]
        self._norm = _norm(model, "emb.ln")
        self._layers = [_layer(model, number) for number in range(min(LAYERS, model.layers))]
        self._letters = model.letters
        self._ends = model.first, model.last
        self._tokenizer = _tokenizer(model)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, ends and all."""
        words = " ".join(text.encode("utf-8", "replace").decode().translate(self._letters).split())
        first, last = self._ends
        return [first, *self._tokenizer.encode(_PREFIX + words, add_special_tokens=False).ids[:MOST_TOKENS], last]

    def vectors(self, texts: Sequence[str], until: float = inf) -> Floats | None:
        """The mean of each text's tokens, (texts, width).

        None when ``until``, seconds since the epoch, passes first.
        """
        ids = [self.tokens(text) for text in texts]
        edges = np.cumsum([0, *map(len, ids)])
        spans = [slice(first, last) for first, last in zip(edges.tolist(), edges[1:].tolist(), strict=False)]
        words = floats(self._words[np.concatenate(ids)])
        found = self._normed(words + np.concatenate([self._places[: len(one)] for one in ids]), self._norm)
        for layer in self._layers:
            if time.time() > until:
                return None
            found = self._through(layer, found, spans)
        return np.stack([found[span].mean(axis=0) for span in spans])

    def _through(self, layer: _Layer, found: Floats, spans: Sequence[slice]) -> Floats:
        """One layer over the tokens of all texts, each of which attends to its own."""
        asked = (found @ layer.asked + layer.asked_bias).reshape(len(found), 3, self._heads, -1).transpose(1, 2, 0, 3)
        seen = np.empty_like(found)
        for span in spans:
            queries, keys, values = asked[:, :, span]
            weights = queries @ keys.swapaxes(1, 2)
            np.exp(weights - weights.max(axis=-1, keepdims=True), out=weights)
            weights /= weights.sum(axis=-1, keepdims=True)
            seen[span] = (weights @ values).transpose(1, 0, 2).reshape(-1, found.shape[1])
        found = self._normed(seen @ layer.out + layer.out_bias + found, layer.norm)
        wide = _gelu(found @ layer.wide + layer.wide_bias)
        return self._normed(wide @ layer.narrow + layer.narrow_bias + found, layer.last_norm)

    def _normed(self, found: Floats, norm: _Norm) -> Floats:
        found = found - found.mean(axis=1, keepdims=True)
        found /= np.sqrt((found * found).mean(axis=1, keepdims=True) + self._epsilon)
        return np.asarray(found * norm.scale + norm.shift, np.float32)


def _gelu(found: Floats) -> Floats:
    """By the logistic form of its tanh approximation (Hendrycks and Gimpel, arXiv:1606.08415)."""
    slope = np.float32(2.0 * sqrt(2.0 / np.pi))
    inner = slope * found * (1 + np.float32(0.044715) * found * found)
    return np.asarray(found / (1 + np.exp(-np.clip(inner, -60, 60))), np.float32)


def _norm(model: ModelFile, name: str) -> _Norm:
    return _Norm(model.tensor(f"{name}.w", -1), model.tensor(f"{name}.b", -1))


def _layer(model: ModelFile, number: int) -> _Layer:
    def weights(name: str) -> Floats:
        rows = len(bias(name))
        return np.ascontiguousarray(model.tensor(f"l{number}.{name}.w", rows, -1).T)

    def bias(name: str) -> Floats:
        return model.tensor(f"l{number}.{name}.b", -1)

    # Scores of attention are over the root of a head's width; queries are divided by it once.
    root = np.float32(sqrt(model.width // model.heads))
    return _Layer(
        np.concatenate((weights("q") / root, weights("k"), weights("v")), axis=1),
        np.concatenate((bias("q") / root, bias("k"), bias("v"))),
        weights("ao"),
        bias("ao"),
        _norm(model, f"l{number}.aln"),
        weights("fi"),
        bias("fi"),
        weights("fo"),
        bias("fo"),
        _norm(model, f"l{number}.oln"),
    )


def _tokenizer(model: ModelFile) -> Tokenizer:
    seen: set[str] = set()
    pieces = []
    for number, (piece, odds) in enumerate(zip(model.pieces, model.log_odds.tolist(), strict=True)):
        # What no text can hold stands for a piece that is there already.
        known = f"\0{number}" if not piece or piece in seen else piece
        seen.add(known)
        pieces.append((known, odds))
    tokenizer = Tokenizer(models.Unigram(pieces, model.unknown, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_WORD_START, "always")
    return tokenizer
