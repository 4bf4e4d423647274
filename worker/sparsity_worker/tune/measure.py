"""Times a tier's sparse attention of one layer against dense attention, over lengths and batches."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from sparsity_worker.tune.crossover import Timing
from sparsity_worker.tune.layer import Layer, Pass

log = logging.getLogger("sparsity.worker")
_WARM: Final = 2
# Tokens of a page of SGLang's kernel, which takes no other.
_THEIR_PAGE: Final = 128
# Calls of one graph, as layers follow each other in a step.
_CALLS: Final = 8
# torch leaves these without types.
_Event: Any = torch.cuda.Event


class Plan(NamedTuple):
    """What is timed.

    Attributes:
        chunk: tokens of a prompt that are read at once.
        lengths: of prompts and contexts, ascending.
        batches: sequences that decode at once, ascending.
        tokens: that the cache holds: of batches that need more, nothing is timed.
        runs: of each.
    """

    chunk: int
    lengths: Sequence[int] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    batches: Sequence[int] = (1, 8, 32)
    tokens: int = 262_144
    runs: int = 7


def measure(layer: Layer, plan: Plan) -> Iterator[Timing]:
    """Prefill by length, then decode by batch and length."""
    layer.fill(plan.lengths[-1])
    for length in plan.lengths:
        new = min(length, plan.chunk)
        sparse, dense = (layer.prefill(length, new, sparse=each) for each in (True, False))
        others = _sdpa_prefill(layer, length, new, plan.runs), theirs(layer, 1, length, new, plan.runs)
        yield _timing("prefill", 1, length, sparse, dense, others, plan.runs)
    for batch in plan.batches:
        for length in plan.lengths:
            if batch * (length + layer.page) <= plan.tokens:
                sparse, dense = (layer.decode(batch, length, sparse=each) for each in (True, False))
                others = _sdpa_decode(layer, batch, length, plan.runs), theirs(layer, batch, length, 1, plan.runs)
                yield _timing("decode", batch, length, sparse, dense, others, plan.runs)


def _timing(
    phase: str,
    batch: int,
    length: int,
    sparse: Pass,
    dense: Pass,
    others: tuple[float | None, float | None],
    runs: int,
) -> Timing:
    device, graph = sparse.queries.device, phase == "decode"
    ours, whole = (milliseconds(each, device, runs, graph=graph) for each in (sparse, dense))
    sdpa, their = others
    return Timing(phase, batch, length, ours, whole, sdpa, sparse.density(), their)


def milliseconds(run: Callable[[], Any], device: torch.device, runs: int, *, graph: bool = False) -> float:
    """Median of one call; of decode in a CUDA graph, as it runs in an engine."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3
    for _ in range(_WARM):
        run()
    calls = _CALLS if graph else 1
    if graph:
        held = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(held):
            for _ in range(calls):
                run()
        run = held.replay
        run()
    found = []
    for _ in range(runs):
        begin, end = _Event(enable_timing=True), _Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(float(begin.elapsed_time(end)) / calls)
    return statistics.median(found)


def theirs(layer: Layer, batch: int, length: int, new: int, runs: int) -> float | None:
    """SGLang's own kernel over the same pages, called as its `fa4` backend does; None where it does not run.

    Args:
        layer: whose keys are attended, those of one sequence after another.
        batch: sequences.
        length: tokens of each.
        new: the last of each, which attend.
        runs: of which the median is taken.
    """
    try:
        from sglang.kernels.ops.attention import flash_attention_v4 as cute

        if not cute.is_flash_attention_v4_available():
            return None
        pages, device = -(-length // _THEIR_PAGE), layer.keys.device
        # Contiguous tokens lie on pages of any size.
        keys, values = (
            cache.view(-1, _THEIR_PAGE, *cache.shape[2:])[: batch * pages] for cache in (layer.keys, layer.values)
        )
        tables = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
        held = torch.full((batch,), length, dtype=torch.int32, device=device)
        starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * new
        q = layer.queries(batch * new)

        def run() -> Any:
            return cute.flash_attn_with_kvcache(
                q=q, k_cache=keys, v_cache=values, page_table=tables, cache_seqlens=held, cu_seqlens_q=starts,
                max_seqlen_q=new, softmax_scale=layer.heads.dim**-0.5, causal=True, num_splits=0,
            )  # fmt: skip

        return milliseconds(run, device, runs, graph=new == 1)
    except Exception as error:  # theirs, of any kind
        log.info("SGLang's kernel is not timed: %s: %s", type(error).__name__, str(error).partition("\n")[0][:200])
        return None


def _sdpa_prefill(layer: Layer, length: int, new: int, runs: int) -> float | None:
    """Torch's fused attention over the same tokens, which it is given in one piece."""
    q = layer.queries(new).transpose(0, 1)[None]
    keys, values = (cache.flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (layer.keys, layer.values))
    # Causal from the last row on, where there is a prefix.
    mask = None if new == length else causal_lower_right(new, length)
    return _sdpa(q, keys, values, runs, causal=mask is None, mask=mask)


def _sdpa_decode(layer: Layer, batch: int, length: int, runs: int) -> float | None:
    q = layer.queries(batch)[:, :, None]
    stride = -(-length // layer.page)
    keys, values = (
        cache[: batch * stride].view(batch, -1, *cache.shape[2:])[:, :length].transpose(1, 2)
        for cache in (layer.keys, layer.values)
    )
    return _sdpa(q, keys, values, runs, graph=True)


def _sdpa(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    runs: int,
    *,
    causal: bool = False,
    mask: Any = None,
    graph: bool = False,
) -> float | None:
    """Milliseconds; None where torch has no kernel for it."""

    def run() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=True)

    try:
        return milliseconds(run, q.device, runs, graph=graph)
    except RuntimeError:
        return None
