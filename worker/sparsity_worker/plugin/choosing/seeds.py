"""Seeds of single requests, without the rest of SGLang's deterministic inference."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

BATCH: Final = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"
KEPT: Final = "sglang.srt.managers.schedule_batch.ScheduleBatch.filter_batch"
MERGED: Final = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.merge_batch"
CHOSEN: Final = "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch"
DRAWN: Final = "sglang.srt.layers.sampler.multinomial_with_seed"

_BITS: Final = 63
# SplitMix64's (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), as signed numbers.
_STEP: Final = 0x9E3779B97F4A7C15 - 2**64
_MIXERS: Final = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def give_seeds(info: Any, *args: Any, **_: Any) -> None:
    """Gives a batch that PyTorch samples its requests' seeds, and rows without any one that nobody knows.

    A batch in which nobody asks for a seed is sampled as SGLang does it, which is faster.

    Args:
        info: how the batch is sampled, just made.
        args: what it was made from, the batch among it.
    """
    from sglang.srt.runtime_context import get_exec

    batch = next((each for each in args if hasattr(each, "reqs")), None)
    if batch is None or info.sampling_seed is not None or get_exec().kernel.sampling_backend != "pytorch":
        return
    if any(map(_asks, batch.reqs)):
        info.sampling_seed = _tensor([request.sampling_params.sampling_seed for request in batch.reqs], info)


def drop_seeds(_: Any, batch: Any, *__: Any, **___: Any) -> None:
    """After requests left a batch: where no other has a seed, it is sampled as SGLang does it again."""
    info = batch.sampling_info
    if info is not None and info.sampling_seed is not None and not any(map(_asks, batch.reqs)):
        info.sampling_seed = None


def align_seeds(info: Any, other: Any, *_: Any, **__: Any) -> None:
    """Before two batches become one: where one has seeds, so has the other, or its rows would be left out."""
    for one, two in ((info, other), (other, info)):
        if one.sampling_seed is None and two.sampling_seed is not None:
            one.sampling_seed = _tensor([None] * len(one), one)


def choose(
    original: Callable[..., Any],
    probs: Any,
    top_ks: Any,
    top_ps: Any,
    min_ps: Any,
    need: bool,
    seed: Any,
    positions: Any,
    **more: Any,
) -> Any:
    """Draws by seeds of the tokens that `top_k`, `top_p` and `min_p` leave, whatever the batch's other rows ask for.

    SGLang numbers tokens by rank where any row leaves some out, and by id where none does, so that an answer would
    depend on who is served beside it; and `min_p` beside a seed ends its process.

    Args:
        original: SGLang's, which takes batches without seeds.
        probs: float of (rows, vocabulary).
        top_ks: integers of (rows,).
        top_ps: float of (rows,).
        min_ps: float of (rows,): least probabilities, as shares of the greatest; 0 leaves none out.
        need: whether any row has such a share.
        seed: int64 of (rows,), or None.
        positions: integers of (rows,): of the tokens in their sequences.
        more: what else SGLang's takes.

    Returns:
        int32 of (rows,): the tokens.
    """
    if seed is None:
        return original(probs, top_ks, top_ps, min_ps, need, seed, positions, **more)
    import torch

    ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(ordered.shape[-1], device=probs.device)
    left = (ranks >= top_ks.view(-1, 1)) | (ordered.cumsum(-1) - ordered > top_ps.view(-1, 1))
    left |= ordered < ordered[:, :1] * min_ps.view(-1, 1)
    kept = torch.zeros_like(probs).scatter_(1, tokens, ordered.masked_fill(left, 0.0))
    return _drawn(kept.log(), seed, positions).view(-1).to(torch.int32)


def draw(_: Callable[..., Any], logprobs: Any, seed: Any, positions: Any) -> Any:
    """Draws a token a row by its seed and place, alike on every device.

    SGLang's own needs a hash that not every build of it has for CPUs, and is compiled when a first request needs it.

    Args:
        logprobs: float of (rows, vocabulary), natural logarithms; -inf where a token must not come.
        seed: int64 of (rows,).
        positions: integers of (rows,): of the tokens in their sequences.

    Returns:
        int64 of (rows, 1): what was drawn.
    """
    return _drawn(logprobs, seed, positions)


def _drawn(logprobs: Any, seed: Any, positions: Any) -> Any:
    import torch

    rows = _mixed(seed + _STEP * (positions.long() + 1))
    places = torch.arange(1, logprobs.shape[-1] + 1, device=logprobs.device) * _STEP
    # 52 random bits and a half, which is never 0 nor 1.
    shares = ((_mixed(rows.view(-1, 1) + places) >> 12 & 2**52 - 1).double() + 0.5) * 2.0**-52
    # Of exponential clocks that run at the probabilities, the first to ring is drawn by just these (Gumbel's trick).
    return (logprobs.double() - (-shares.log()).log()).argmax(dim=1, keepdim=True)


def _mixed(state: Any) -> Any:
    """SplitMix64's bits of int64 states."""
    for shift, factor in _MIXERS:
        state = (state ^ (state >> shift & 2 ** (64 - shift) - 1)) * factor
    return state ^ (state >> 31 & 2**33 - 1)


def _asks(request: Any) -> bool:
    return request.sampling_params.sampling_seed is not None


def _tensor(asked: list[int | None], info: Any) -> Any:
    import torch

    seeds = [random.getrandbits(_BITS) if seed is None else seed for seed in asked]
    return torch.tensor(seeds, dtype=torch.int64, device=info.device)
