"""Compares prompts with exemplars by a sentence-embedding model on onnxruntime.

The model is all-MiniLM-L6-v2 (Sentence-BERT, Reimers and Gurevych, EMNLP 2019; Wang et al., MiniLM, NeurIPS 2020) with
int8 weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from sparsity_router.prompts.domains import Score

Vectors = npt.NDArray[np.float32]
WINDOW_TOKENS = 126
# Tokenized at a time: what a tokenizer tells of a text takes hundreds of times its memory.
_PIECE_CHARACTERS = 16_384


class Embedder:
    """Unit vectors of texts.

    Args:
        model: an ONNX file with inputs input_ids, attention_mask and token_type_ids of [batch, sequence], int64, and
            output [batch, sequence, dimension], float32.
        tokenizer: its tokenizer.json.
    """

    def __init__(self, model: Path, tokenizer: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        around = self._tokenizer.encode("").ids
        self._first, self._last = around[0], around[-1]

    def windows(self, text: str) -> Iterator[list[int]]:
        """The whole text in windows of at most ``WINDOW_TOKENS`` tokens, tokenized as far as they are asked for."""
        ids: list[int] = []
        for piece in _pieces(text):
            ids += self._tokenizer.encode(piece, add_special_tokens=False).ids
            while len(ids) > WINDOW_TOKENS:
                yield ids[:WINDOW_TOKENS]
                del ids[:WINDOW_TOKENS]
        yield ids

    def embed(self, window: Sequence[int]) -> Vectors:
        """The mean over tokens, of unit length: [dimension]."""
        ids = np.array([[self._first, *window, self._last]], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = self._session.run(None, inputs)[0][0].mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end with a word, where words are not longer than a part."""
    at = 0
    while len(text) - at > _PIECE_CHARACTERS:
        end = at + _PIECE_CHARACTERS
        cut = max(text.rfind(space, at, end) for space in " \n\t") + 1
        yield text[at : cut if cut > at else end]
        at = cut if cut > at else end
    yield text[at:]


class Classifier:
    """Exemplars as vectors, and prompts beside them."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Vectors] = {}
        self._sets: dict[str, tuple[list[str], Vectors]] = {}

    def learn(self, texts: Sequence[str]) -> None:
        """Embeds exemplars."""
        for text in texts:
            if text not in self._known:
                vectors = np.stack([self._embedder.embed(window) for window in self._embedder.windows(text)])
                mean = vectors.mean(axis=0)
                self._known[text] = mean / np.linalg.norm(mean)

    def use(self, key: str, exemplars: Sequence[tuple[str, str]]) -> None:
        """Names a set of learnt exemplars, pairs of domain and text; forgets what only older sets had."""
        matrix = np.stack([self._known[text] for _, text in exemplars])
        self._sets = {key: ([domain for domain, _ in exemplars], matrix)}
        kept = {text for _, text in exemplars}
        self._known = {text: vector for text, vector in self._known.items() if text in kept}

    def scores(self, key: str, text: str, until: float) -> dict[str, Score] | None:
        """Every domain's score over the whole text; None when ``until``, seconds since the epoch, passes first.

        Raises:
            LookupError: when the set is not known here.
        """
        domains, matrix = self._sets[key]
        peaks: dict[str, float] = {}
        sums: dict[str, float] = {}
        count = 0
        for window in self._embedder.windows(text):
            if time.time() > until:
                return None
            count += 1
            best: dict[str, float] = {}
            for domain, likeness in zip(domains, (matrix @ self._embedder.embed(window)).tolist(), strict=True):
                best[domain] = max(best.get(domain, -1.0), likeness)
            for domain, likeness in best.items():
                peaks[domain] = max(peaks.get(domain, -1.0), likeness)
                sums[domain] = sums.get(domain, 0.0) + likeness
        return {domain: Score(peaks[domain], sums[domain] / count) for domain in peaks}
