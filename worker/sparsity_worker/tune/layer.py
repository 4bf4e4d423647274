"""One layer of a tier as the worker attends it, with made-up keys that draw attention to some pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

import torch

from sparsity_worker.plugin.accounts.ledger import Account, Ledger
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL
from sparsity_worker.plugin.attention import Prompt, Spans
from sparsity_worker.plugin.memory import summaries_of
from sparsity_worker.plugin.triton_attention import TritonAttention
from sparsity_worker.profiles.profile import Profile
from sparsity_worker.tune.crossover import Heads

# How much a page's keys add to the logits of queries of their topic, on average.
_DRAW: Final = 2.0
_RID: Final = "tuned"


class Layer:
    """The layer in the middle of a profile's sparse ones, and room for ``tokens`` of as many sequences as fit.

    Args:
        profile: of the tier; sparse here from the first token on.
        heads: of the layer.
        layers: of the model.
        tokens: that the cache holds.
        context: of the model, tokens; tables of decode are as wide.
        device: `cuda`, or the CPU in Triton's interpreter.
        dtype: of the cache.

    Raises:
        ValueError: naming what has no kernel.
    """

    def __init__(
        self,
        profile: Profile,
        heads: Heads,
        layers: int,
        tokens: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        sparse = [layer for layer in range(layers) if layer not in profile.dense_layers]
        if not sparse:
            raise ValueError("dense_layers: are all of the model's; there is nothing to tune")
        self.number = sparse[len(sparse) // 2]
        self.page, self.heads = profile.block_size, heads
        self._profile = replace(
            profile.for_heads(range(heads.kv_heads)), decode_from={},
            prefill=replace(profile.prefill, sparse_from=1), decode=replace(profile.decode, sparse_from=0),
        )  # fmt: skip
        self._draw = torch.Generator(device).manual_seed(0)
        pages = tokens // self.page
        shape = (pages, self.page, heads.kv_heads, heads.dim)
        self._topic = torch.randint(0, 2, (heads.kv_heads, heads.dim), generator=self._draw, device=device) * 2.0 - 1
        draw = torch.empty(pages, 1, heads.kv_heads, 1, device=device).exponential_(1 / _DRAW, generator=self._draw)
        noise = torch.randn(shape, generator=self._draw, device=device)
        self.keys = (noise + draw * self._topic * heads.dim**-0.5).to(dtype)
        self.values = torch.randn(shape, generator=self._draw, device=device).to(dtype)
        self._summaries = summaries_of(self.keys, profile.sub_block, range(self.number, self.number + 1))
        self._context = context

    def queries(self, rows: int) -> torch.Tensor:
        """``[rows, Hq, D]``, each of its KV head's topic."""
        shape = (rows, self.heads.heads, self.heads.dim)
        noise = torch.randn(shape, generator=self._draw, device=self.keys.device)
        grouped = self._topic.repeat_interleave(self.heads.heads // self.heads.kv_heads, 0)
        return (noise + grouped).to(self.keys.dtype)

    def fill(self, length: int) -> None:
        """Summarizes the pages of all sequences of ``length`` tokens that fit, as reading them does."""
        for start in range(0, self.keys.shape[0] * self.page - length + 1, length):
            self.prefill(length, length, sparse=False, first=start)()

    def prefill(self, length: int, new: int, *, sparse: bool, first: int = 0) -> Pass:
        """Attention of the last ``new`` tokens of a prompt, whose keys begin at a token of the cache."""
        slots = first + torch.arange(length, device=self.keys.device, dtype=torch.int32)[None]
        attention, ledger = self._attention(slots)
        spans = Spans([_RID], [0], [length], [new], [Prompt(length if sparse else 0)])
        attention.prepare(spans, False)
        return Pass(attention, ledger, self.queries(new), self, PREFILL, spans)

    def decode(self, batch: int, length: int, *, sparse: bool, first: int = 0) -> Pass:
        """Attention of one more token of each of ``batch`` sequences, prepared as for a CUDA graph.

        Their keys lie one sequence's after another's, from a token of the cache on with which a page begins.
        """
        device, stride = self.keys.device, -(-length // self.page) * self.page
        slots = torch.zeros(batch, self._context, device=device, dtype=torch.int32)
        begins = first + stride * torch.arange(batch, device=device)
        slots[:, :length] = torch.arange(length, device=device) + begins[:, None]
        attention, ledger = self._attention(slots)
        prompt = Prompt(length, reasoning=not sparse)
        spans = Spans([_RID] * batch, [*range(batch)], [length] * batch, [1] * batch, [prompt] * batch)
        attention.allocate(batch)
        attention.stage(spans, torch.arange(batch, device=device), torch.full((batch,), length, device=device))
        ledger.price_steps([self.number], [each.attended for each in attention.step_prices()], self.heads.heads, 1)
        ledger.step(_RID, length, dense=not sparse)
        return Pass(attention, ledger, self.queries(batch), self, DECODE)

    def attend(self, attention: TritonAttention, q: torch.Tensor, phase: int) -> torch.Tensor:
        """One call of the layer."""
        layer: Any = SimpleNamespace(layer_id=self.number, scaling=self.heads.dim**-0.5)
        return attention.attend(q, self.keys, self.values, layer, phase == DECODE)

    def _attention(self, slots: torch.Tensor) -> tuple[TritonAttention, Ledger]:
        ledger = Ledger(self.number + 1, capacity=1)
        return TritonAttention([self._profile], self._summaries, slots, ledger, self.heads.heads), ledger


@dataclass(frozen=True, slots=True)
class Pass:
    """A batch that can be attended again and again.

    Attributes:
        attention: that was told of it.
        ledger: of that.
        queries: ``[rows, Hq, D]``.
        layer: whose keys they attend.
        phase: `PREFILL` or `DECODE`.
        spans: of prefill, what it was told of.
    """

    attention: TritonAttention
    ledger: Ledger
    queries: torch.Tensor
    layer: Layer
    phase: int
    spans: Spans | None = None

    def __call__(self) -> torch.Tensor:
        """Attends it."""
        return self.layer.attend(self.attention, self.queries, self.phase)

    def density(self) -> float:
        """Attends it for the last time; the share of the pairs that were attended."""
        if self.spans is not None:
            # What earlier passes noted adds up until a batch begins.
            self.attention.prepare(self.spans, False)
        self()
        self.attention.book()
        account = Account.unpack(self.ledger.pack(_RID))
        return float(account.density(self.phase)[self.layer.number])
