"""Times a tier's sparse attention of one layer against dense attention, over lengths and batches."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from sparsity_worker.tune.crossover import Timing
from sparsity_worker.tune.layer import Layer, Pass

log = logging.getLogger("sparsity.worker")
_WARM: Final = 2
# Tokens of a page that SGLang serves its kernel by on Blackwell, whatever it is asked for.
_BLACKWELL, _BLACKWELL_PAGE = 10, 128
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
        calls: of one graph, as layers follow each other in a step: each over keys that the cache of the device does
            not hold from the one before, as far as there are others.
    """

    chunk: int
    lengths: Sequence[int] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    batches: Sequence[int] = (1, 8, 32)
    tokens: int = 262_144
    runs: int = 7
    calls: int = 8


def measure(layer: Layer, plan: Plan) -> Iterator[Timing]:
    """Prefill by length, then decode by batch and length."""
    layer.fill(plan.lengths[-1])
    for length in plan.lengths:
        new = min(length, plan.chunk)
        sparse, dense = ([layer.prefill(length, new, sparse=each)] for each in (True, False))
        others = _sdpa_prefill(layer, length, new, plan.runs), theirs(layer, 1, length, new, plan, [0])
        yield _timing("prefill", 1, length, sparse, dense, others, plan.runs)
    for batch in plan.batches:
        for length in plan.lengths:
            if batch * (length + layer.page) <= plan.tokens:
                at = places(layer, batch, length, plan.calls)
                sparse, dense = (
                    [layer.decode(batch, length, sparse=each, first=first) for first in at] for each in (True, False)
                )
                others = _sdpa_decode(layer, batch, length, plan.runs, at), theirs(layer, batch, length, 1, plan, at)
                yield _timing("decode", batch, length, sparse, dense, others, plan.runs)


def places(layer: Layer, batch: int, length: int, calls: int) -> list[int]:
    """Tokens of the cache at which so many batches begin, no two of which share keys while there are others."""
    apart = batch * -(-length // layer.page) * layer.page
    room = max(layer.keys.shape[0] * layer.page // apart, 1)
    return [number % room * apart for number in range(calls)]


def _timing(
    phase: str,
    batch: int,
    length: int,
    sparse: Sequence[Pass],
    dense: Sequence[Pass],
    others: tuple[float | None, float | None],
    runs: int,
) -> Timing:
    device, graph = sparse[0].queries.device, phase == "decode"
    ours, whole = (milliseconds(each, device, runs, graph=graph) for each in (sparse, dense))
    sdpa, their = others
    return Timing(phase, batch, length, ours, whole, sdpa, sparse[0].density(), their)


def milliseconds(calls: Sequence[Callable[[], Any]], device: torch.device, runs: int, *, graph: bool = False) -> float:
    """Median of one call, of several that follow each other; of decode in a CUDA graph, as it runs in an engine."""

    def run() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) / len(calls) * 1e3
    for _ in range(_WARM):
        run()
    again: Callable[[], Any] = run
    if graph:
        held = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(held):
            run()
        again = held.replay
        again()
    found = []
    for _ in range(runs):
        begin, end = _Event(enable_timing=True), _Event(enable_timing=True)
        begin.record()
        again()
        end.record()
        end.synchronize()
        found.append(float(begin.elapsed_time(end)) / len(calls))
    return statistics.median(found)


def their_page(device: torch.device, page: int) -> int:
    """Tokens of a page that a worker serves SGLang's `fa4` by, which asks for ``page``."""
    blackwell = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _BLACKWELL
    return _BLACKWELL_PAGE if blackwell else page


def theirs(layer: Layer, batch: int, length: int, new: int, plan: Plan, at: Sequence[int]) -> float | None:
    """SGLang's own kernel over the same pages, called as its `fa4` backend does; None where it does not run.

    Args:
        layer: whose keys are attended, those of one sequence after another.
        batch: sequences.
        length: tokens of each.
        new: the last of each, which attend.
        plan: says how often.
        at: tokens of the cache at which batches begin, one after the other.
    """
    try:
        from sglang.kernels.ops.attention import flash_attention_v4 as cute

        if not cute.is_flash_attention_v4_available():
            return None
        device = layer.keys.device
        page = their_page(device, layer.page)
        # Contiguous tokens lie on pages of any size.
        keys, values = (cache.view(-1, page, *cache.shape[2:]) for cache in (layer.keys, layer.values))
        tables = [their_table(layer, batch, length, page, first) for first in at]
        held = torch.full((batch,), length, dtype=torch.int32, device=device)
        starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * new
        q = layer.queries(batch * new)

        def run(table: torch.Tensor) -> Any:
            return cute.flash_attn_with_kvcache(
                q=q, k_cache=keys, v_cache=values, page_table=table, cache_seqlens=held, cu_seqlens_q=starts,
                max_seqlen_q=new, softmax_scale=layer.heads.dim**-0.5, causal=True, num_splits=0,
            )  # fmt: skip

        return milliseconds([partial(run, table) for table in tables], device, plan.runs, graph=new == 1)
    except Exception as error:  # theirs, of any kind
        log.info("SGLang's kernel is not timed: %s: %s", type(error).__name__, str(error).partition("\n")[0][:200])
        return None


def their_table(layer: Layer, batch: int, length: int, page: int, first: int) -> torch.Tensor:
    """Pages of a batch that begins at a token of the cache, int32 ``[batch, pages]``; the last may be shared."""
    apart, device = -(-length // layer.page) * layer.page, layer.keys.device
    begins = (first + apart * torch.arange(batch, device=device)) // page
    table = begins[:, None] + torch.arange(-(-length // page), device=device)
    return table.clamp(max=layer.keys.shape[0] * layer.page // page - 1).to(torch.int32)


def _sdpa_prefill(layer: Layer, length: int, new: int, runs: int) -> float | None:
    """Torch's fused attention over the same tokens, which it is given in one piece."""
    q = layer.queries(new).transpose(0, 1)[None]
    keys, values = (cache.flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (layer.keys, layer.values))
    # Causal from the last row on, where there is a prefix.
    mask = None if new == length else causal_lower_right(new, length)
    return _sdpa(q, [(keys, values)], runs, causal=mask is None, mask=mask)


def _sdpa_decode(layer: Layer, batch: int, length: int, runs: int, at: Sequence[int]) -> float | None:
    stride = -(-length // layer.page)

    def held(cache: torch.Tensor, first: int) -> torch.Tensor:
        pages = cache[first // layer.page :][: batch * stride]
        return pages.view(batch, -1, *cache.shape[2:])[:, :length].transpose(1, 2)

    caches = [(held(layer.keys, first), held(layer.values, first)) for first in at]
    return _sdpa(layer.queries(batch)[:, :, None], caches, runs, graph=True)


def _sdpa(
    q: torch.Tensor,
    caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    runs: int,
    *,
    causal: bool = False,
    mask: Any = None,
    graph: bool = False,
) -> float | None:
    """Milliseconds; None where torch has no kernel for it."""

    def run(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=True)

    try:
        return milliseconds([partial(run, *cache) for cache in caches], q.device, runs, graph=graph)
    except RuntimeError:
        return None
