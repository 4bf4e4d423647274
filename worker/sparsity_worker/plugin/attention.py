"""What computes attention for the backend: on the CPU in torch, on GPUs by the Triton kernels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from sparsity_worker.keys import NOBODY, UNACCOUNTED_VARIABLE

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sparse_kernels import PrefillConfig


# Of a request whose coverage is measured: so many layers, and rows of each chunk of its prompt.
_MEASURED_LAYERS, MEASURED_ROWS = 4, 8


def watched(layers: Iterable[int]) -> set[int]:
    """The layers in which coverage is measured, spread evenly."""
    there = sorted(layers)
    middles = (len(there) * (2 * place + 1) // (2 * _MEASURED_LAYERS) for place in range(_MEASURED_LAYERS))
    return {there[middle] for middle in middles}


class Prompt(NamedTuple):
    """What a forward batch does not know of a request.

    Attributes:
        length: of its whole prompt, tokens.
        probe: whether it is the probe.
        reasoning: whether its newest known token lies in a reasoning span that decodes densely.
        measured: whether its coverage is measured on some rows.
        markers: the tokens that open and close such a span; None where it decodes no span densely, or all of the text.
        tier: the place of its tier among the engine's, of which the first is the densest.
    """

    length: int
    probe: bool = False
    reasoning: bool = False
    measured: bool = False
    markers: tuple[int, int] | None = None
    tier: int = 0

    def reads_sparsely(self, config: PrefillConfig, length: int) -> bool:
        """Whether a pass of prefill that ends at ``length`` tokens is sparse.

        Generated tokens are read so only where the engine took the request back. Reasoning among them, which decoded
        densely, is given no less then: by the last tiles, which begin at the prompt's end, or by the whole pass.
        """
        held = self.reasoning or self.markers is not None
        if held and length > self.length and not config.dense_last_tiles:
            return False
        return self.probe or self.length >= config.sparse_from


_UNACCOUNTED = os.environ.get(UNACCOUNTED_VARIABLE) == "1"


def accounted(prompts: Iterable[Prompt]) -> bool:
    """Whether what a batch of these attends is booked and reported; the probe's always is."""
    return not _UNACCOUNTED or any(prompt.probe for prompt in prompts)


class Spans(NamedTuple):
    """The new tokens of a forward batch, by request and in its order; all lists are of one length.

    Attributes:
        rids: ids of the requests; `NOBODY` for made-up ones.
        slots: their rows in the pool of requests.
        lengths: tokens in the cache, the new ones included.
        new: new tokens.
        prompts: what else is known.
    """

    rids: list[str]
    slots: list[int]
    lengths: list[int]
    new: list[int]
    prompts: list[Prompt]

    @classmethod
    def of(cls, forward_batch: Any, prompts: Mapping[str, Prompt]) -> Spans:
        """Reads an eager forward batch of SGLang's, or one that it captures or warms up with, which names nobody."""
        lengths = on_the_host(forward_batch, "seq_lens")
        decode = forward_batch.forward_mode.is_decode_or_idle()
        new = [1] * len(lengths) if decode else on_the_host(forward_batch, "extend_seq_lens")
        slots = on_the_host(forward_batch, "req_pool_indices")
        return cls.named(forward_batch.rids or (), slots, lengths, new, prompts)

    @classmethod
    def named(
        cls,
        rids: Sequence[str],
        slots: list[int],
        lengths: list[int],
        new: list[int],
        prompts: Mapping[str, Prompt],
    ) -> Spans:
        """Rows of which the first are the requests ``rids``, and the others, if there are any, nobody's."""
        names = [*rids, *[NOBODY] * (len(lengths) - len(rids))]
        known = [prompts.get(rid, Prompt(length)) for rid, length in zip(names, lengths, strict=True)]
        return cls(names, slots, lengths, new, known)


def on_the_host(forward_batch: Any, name: str) -> list[int]:
    """A field's values, from the host's copy where there is one: to read the device's would wait for it."""
    found = getattr(forward_batch, f"{name}_cpu", None)
    found = getattr(forward_batch, name) if found is None else found
    return list(map(int, found))


class Attention(Protocol):
    """One forward pass at a time: `prepare`, then `attend` for each layer, then `book`."""

    def prepare(self, spans: Spans, decode: bool) -> None:
        """Takes note of a batch, before its first layer."""

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: RadixAttention, decode: bool
    ) -> torch.Tensor:
        """Attention of one layer, whose new keys and values are written.

        Args:
            q: ``[T, Hq, D]``, of all requests.
            keys: the layer's cache, ``[pages, page, Hkv, D]``.
            values: same shape.
            layer: SGLang's layer.
            decode: whether each request has one new token that is decoded.
        """

    def book(self) -> None:
        """Enters into the ledger what its lengths alone do not tell, after the last layer."""


class GraphedAttention(Attention, Protocol):
    """Attention whose decode CUDA graphs can replay."""

    def allocate(self, most: int) -> None:
        """Buffers for decode batches of ``most`` requests under CUDA graphs."""

    def stage(self, spans: Spans, slots: torch.Tensor, lengths: torch.Tensor) -> None:
        """Takes note of a decode batch that a CUDA graph runs."""

    def decoding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the decode batch: bool ``[rows]``, which attend everything, and int32 ``[rows]``, tokens in the cache."""
