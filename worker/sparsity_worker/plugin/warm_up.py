"""Runs every kernel of a tier once before it serves, so that no request waits for a compiler.

A kernel has a variant for each width of a table in powers of 2, each such number of sequences that decode, and for
layers and batches that attend everything. What batches are made here, `tests/worker/test_warm_up.py` holds against
thousands of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from sparsity_worker.keys import NOBODY
from sparsity_worker.plugin.attention import Prompt, Spans
from sparsity_worker.plugin.triton_attention import TritonAttention
from sparsity_worker.profiles.profile import Profile

Caches = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a layer, ``[pages, page, Hkv, D]``."""


class Served(NamedTuple):
    """What a worker is asked for at most.

    Attributes:
        heads: query heads of a layer, of one rank.
        dim: of a head.
        context: of the model, tokens.
        most: requests at once.
    """

    heads: int
    dim: int
    context: int
    most: int


def warm_up(attention: TritonAttention, profiles: Sequence[Profile], caches: Caches, served: Served) -> None:
    """Attends made-up batches in every layer; reads and writes no page but SGLang's padding page, and books nothing.

    Args:
        attention: that serves; its pool's row 0 is that of padding.
        profiles: of the tiers.
        caches: of the layers.
        served: what is asked for at most.
    """
    for spans, decode in batches(profiles, served):
        attention.prepare(spans, decode)
        for layer in attention.layers:
            keys, values = caches(layer)
            q = torch.zeros(sum(spans.new), served.heads, served.dim, dtype=keys.dtype, device=keys.device)
            made: Any = SimpleNamespace(layer_id=layer, scaling=served.dim**-0.5)
            attention.attend(q, keys, values, made, decode)
        attention.book()


def batches(profiles: Sequence[Profile], served: Served) -> Iterator[tuple[Spans, bool]]:
    """Batches that need every variant of every kernel, and whether they decode.

    What attends everything is alike in all tiers, and decode of several takes each one's budget as it comes.
    """
    for tier, profile in enumerate(profiles):
        if profile.dense and len(profiles) > 1:
            continue
        tile = profile.prefill.query_tile
        for length in [*_doubled(profile.block_size, served.context - 1), served.context]:
            # Of the start-up probe: sparse whatever its length.
            yield _spans(1, length, min(length, tile), Prompt(length, probe=True, tier=tier)), False
        for new in (1, 3 * tile, 16 * tile):
            yield _spans(1, served.context, min(served.context, new), Prompt(served.context, tier=tier)), False
            yield _spans(1, served.context, min(served.context, new), Prompt(0, tier=tier)), False
    for sequences in [*_doubled(1, served.most - 1), served.most]:
        yield _spans(sequences, served.context, 1, Prompt(served.context)), True


def _doubled(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _spans(sequences: int, length: int, new: int, prompt: Prompt) -> Spans:
    return Spans([NOBODY] * sequences, [0] * sequences, [length] * sequences, [new] * sequences, [prompt] * sequences)
