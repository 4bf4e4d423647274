"""Dense attention that others wrote, on the same device and in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sparsity_bench.kernels.inputs import Inputs
from sparsity_bench.kernels.kernels import Step

CUDNN, FLASH, CUTE, SDPA = "cuDNN", "torch flash", "CuTe FlashAttention of SGLang", "torch, contiguous"
CUTE_PAGED = f"{CUTE}, paged"
_CUTE_MODULE = "sglang.kernels.ops.attention.flash_attention_v4"
_BACKENDS = {CUDNN: SDPBackend.CUDNN_ATTENTION, FLASH: SDPBackend.FLASH_ATTENTION}
Runnable = Callable[[], Any]
View = Callable[[Any], torch.Tensor]


def absent(*modules: str) -> dict[str, str]:
    """Which of these modules do not load, and why."""
    found = {}
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # whatever a broken installation raises
            found[module] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return found


def cute_problem() -> str | None:
    """Why SGLang's CuTe FlashAttention, the `fa4` backend, cannot be called; None where it can."""
    problem = absent(_CUTE_MODULE).get(_CUTE_MODULE)
    if problem is None and not import_module(_CUTE_MODULE).is_flash_attention_v4_available():
        problem = "its CUDA dependencies are not there"
    return problem


class Prefill(NamedTuple):
    """Someone's attention of a whole prompt.

    Attributes:
        name: whose.
        run: the call that is timed.
        view: of what it returns, as ``[T, Hq, D]``.
    """

    name: str
    run: Runnable
    view: View


class Decode(NamedTuple):
    """Someone's decode step over all tokens.

    Attributes:
        name: whose.
        runs: the calls that are timed, layer by layer.
        view: of what one returns, as ``[sequences, Hq, D]``.
    """

    name: str
    runs: Sequence[Runnable]
    view: View


def prefills(given: Inputs) -> Iterator[Prefill]:
    """Causal attention by each that runs here; contiguous keys and values."""
    keys, values = given.contiguous()
    q = given.q.transpose(0, 1)[None].contiguous()

    def sdpa() -> torch.Tensor:
        return scaled_dot_product_attention(q, keys, values, is_causal=True, scale=given.scale, enable_gqa=True)

    if given.q.device.type == "cpu":
        # A dry run has rows of both.
        for name in (CUDNN, CUTE):
            yield Prefill(name, sdpa, lambda out: out[0].transpose(0, 1))
        return
    for name, backend in _BACKENDS.items():
        with sdpa_kernel(backend):
            if runs(sdpa):
                yield Prefill(name, sdpa, lambda out: out[0].transpose(0, 1))
    if cute_problem() is None:
        attend = import_module(_CUTE_MODULE).flash_attn_varlen_func
        whole, cached = given.q, [part[0].transpose(0, 1).contiguous() for part in (keys, values)]
        longest = whole.shape[0]
        starts = torch.tensor([0, longest], dtype=torch.int32, device=whole.device)

        def cute() -> Any:
            return attend(
                whole, *cached, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest, max_seqlen_k=longest,
                softmax_scale=given.scale, causal=True,
            )  # fmt: skip

        if runs(cute):
            yield Prefill(CUTE, cute, lambda out: out)


def decodes(steps: Sequence[Step]) -> Iterator[Decode]:
    """A step over all tokens by each that runs here; all sequences are of one length."""
    length, page = int(steps[0].batch.lengths[0]), steps[0].batch.keys.shape[1]
    blocks = -(-length // page)

    def contiguous(step: Step) -> Runnable:
        tables = step.batch.tables[:, :blocks].long()
        keys, values = (
            cache[tables].flatten(1, 2)[:, :length].transpose(1, 2).contiguous()
            for cache in (step.batch.keys, step.batch.values)
        )
        q = step.q[:, :, None].contiguous()
        return lambda: scaled_dot_product_attention(q, keys, values, scale=step.scale, enable_gqa=True)

    yield Decode(SDPA, [contiguous(step) for step in steps], lambda out: out[:, :, 0])
    if steps[0].q.device.type == "cpu":
        yield Decode(CUTE_PAGED, [contiguous(step) for step in steps], lambda out: out[:, :, 0])
        return
    if cute_problem() is not None:
        return
    attend = import_module(_CUTE_MODULE).flash_attn_with_kvcache

    def paged(step: Step) -> Runnable:
        tables, q = step.batch.tables[:, :blocks].contiguous(), step.q[:, None].contiguous()
        return lambda: attend(
            q, step.batch.keys, step.batch.values, cache_seqlens=step.batch.lengths, page_table=tables,
            max_seqlen_q=1, softmax_scale=step.scale, causal=True, num_splits=0,
        )  # fmt: skip

    calls = [paged(step) for step in steps]
    if runs(calls[0]):
        yield Decode(CUTE_PAGED, calls, lambda out: out[:, 0])


def runs(call: Runnable) -> bool:
    """Whether a baseline takes this shape at all."""
    try:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception:  # theirs, of any kind
        return False
    return True
