"""The `sparsity` attention backend of SGLang, on the CPU engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sparse_kernels import PagedSequence, PageSummaries, block_sparse_prefill, dense_attention, sparse_paged_decode
from sparse_kernels.stats import AttentionStats
from sparsity.errors import ConfigurationError

from sparsity_worker.plugin import BACKEND, CONFIG_KEY
from sparsity_worker.plugin.accounting import DECODE, PREFILL, Ledger
from sparsity_worker.profile import Profile, parse_profile

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class Prompt(NamedTuple):
    """What a forward batch does not know of a request: its whole prompt's length, and whether it is the probe."""

    length: int
    probe: bool = False


class _Row(NamedTuple):
    """One request of a forward batch: its tokens are rows ``start .. end`` and its context has ``length`` keys."""

    rid: str
    start: int
    end: int
    length: int
    prompt: Prompt
    table: torch.Tensor


class _Metadata(NamedTuple):
    """The requests of a forward batch, and the pages that their new tokens are written to."""

    rows: list[_Row]
    pages: torch.Tensor


class SparsityAttnBackend(AttentionBackend):  # type: ignore[misc]
    """Block-sparse prefill and sparse paged decode by the profile in the model config.

    Raises:
        ConfigurationError: at start, naming the option it cannot serve.
    """

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__()
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        document = getattr(runner.model_config.hf_config, CONFIG_KEY, None)
        self.profile: Profile = parse_profile(document, f"model config {CONFIG_KEY}")
        self._refuse_unsupported(runner)
        pool = self.token_to_kv_pool
        keys = pool.get_key_buffer(pool.start_layer)
        slots, kv_heads, dim = keys.shape
        try:
            self.profile.check(runner.model_config.num_hidden_layers, kv_heads)
        except ValueError as error:
            raise ConfigurationError(f"profile {self.profile.label}: {error}") from error
        self._page = self.profile.block_size
        self._summaries = [
            PageSummaries(slots // self._page, self._page, kv_heads, dim, self.profile.sub_block, keys.device)
            for _ in range(pool.layer_num)
        ]
        self.ledger = Ledger(runner.model_config.num_hidden_layers, capacity=4 * self.req_to_token_pool.size)
        self.prompts: dict[str, Prompt] = {}
        self.forward_metadata: _Metadata | None = None

    def _refuse_unsupported(self, runner: ModelRunner) -> None:
        if str(runner.device) != "cpu":
            raise ConfigurationError(f"device: the {BACKEND} backend runs on cpu, not {runner.device}")
        if runner.page_size != self.profile.block_size:
            wanted = self.profile.block_size
            raise ConfigurationError(f"page_size: must equal the profile's block_size {wanted}, not {runner.page_size}")
        if isinstance(self.token_to_kv_pool, SWAKVPool):
            raise ConfigurationError("model: sliding-window KV pools are not supported; serve this model dense")
        if runner.use_mla_backend:
            raise ConfigurationError("model: MLA models are not supported; serve this model dense")
        if runner.model_config.is_encoder_decoder:
            raise ConfigurationError("model: encoder-decoder models are not supported; serve this model dense")

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Block tables of the batch and the pages its new tokens touch."""
        lengths = forward_batch.seq_lens.tolist()
        decode = forward_batch.forward_mode.is_decode_or_idle()
        added = [1] * len(lengths) if decode else forward_batch.extend_seq_lens.tolist()
        if forward_batch.spec_info is not None:
            raise ConfigurationError("speculative_algorithm: speculative decoding is not supported by this backend")
        rows, pages, start = [], [torch.empty(0, dtype=torch.int64)], 0
        requests = zip(forward_batch.rids, forward_batch.req_pool_indices.tolist(), lengths, added, strict=True)
        for rid, slot, length, new in requests:
            slots = self.req_to_token_pool.req_to_token[slot, : length : self._page]
            table = (slots // self._page).to(torch.int64)
            rows.append(_Row(rid, start, start + new, length, self.prompts.get(rid, Prompt(length)), table))
            pages.append(table[(length - new) // self._page :])
            start += new
        self.forward_metadata = _Metadata(rows, torch.cat(pages))

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **_: Any,
    ) -> torch.Tensor:
        """Prefill, chunked or not, after any cached prefix."""
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, PREFILL)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **_: Any,
    ) -> torch.Tensor:
        """One new token of every request."""
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, DECODE)

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
        phase: int,
    ) -> torch.Tensor:
        _refuse_layer(layer)
        metadata = self.forward_metadata
        assert metadata is not None
        pool, index = self.token_to_kv_pool, layer.layer_id - self.token_to_kv_pool.start_layer
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch), k, v)
        keys, values = (
            cache.view(-1, self._page, *cache.shape[1:])
            for cache in (pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id))
        )
        summaries = self._summaries[index]
        summaries.mark(metadata.pages)
        rows = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = torch.empty_like(rows)
        for row in metadata.rows:
            sequence = PagedSequence(keys, values, row.table, row.length)
            result, stats = self._attend(rows[row.start : row.end], sequence, summaries, layer, row, phase)
            out[row.start : row.end] = result
            self.ledger.add(row.rid, layer.layer_id, phase, stats)
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def _attend(
        self,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        layer: RadixAttention,
        row: _Row,
        phase: int,
    ) -> tuple[torch.Tensor, AttentionStats]:
        if phase == DECODE:
            decode = self.profile.decode_at(layer.layer_id)
            if decode and row.length >= decode.sparse_from:
                out, stats = sparse_paged_decode(q[0], sequence, summaries, decode, layer.scaling)
                return out[None], stats
        else:
            prefill = self.profile.prefill_at(layer.layer_id)
            if prefill and (row.prompt.probe or row.prompt.length >= prefill.sparse_from):
                return block_sparse_prefill(q, sequence, summaries, prefill, layer.scaling, total=row.prompt.length)
        return dense_attention(q, sequence, layer.scaling)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Context length of padding rows."""
        return 1

    def support_triton(self) -> bool:
        """The CPU implementation launches no Triton kernel."""
        return False


def _refuse_layer(layer: RadixAttention) -> None:
    if layer.is_cross_attention or layer.attn_type not in (AttentionType.DECODER, AttentionType.DECODER.value):
        raise ConfigurationError(f"model: layer {layer.layer_id} is not causal self-attention; serve this model dense")
    if layer.logit_cap or (layer.sliding_window_size or -1) > -1:
        raise ConfigurationError(f"model: layer {layer.layer_id} has a logit cap or window; serve this model dense")
