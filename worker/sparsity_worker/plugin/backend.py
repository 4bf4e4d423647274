"""The `sparsity` attention backend of SGLang."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sglang.srt.environ import envs
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sparse_kernels import PageSummaries
from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.keys import BACKEND
from sparsity_worker.plugin.accounts.decode_steps import DenseRows
from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.accounts.packing import Followed, Packed
from sparsity_worker.plugin.attention import Attention, GraphedAttention, Prompt, Spans, on_the_host
from sparsity_worker.plugin.memory import summaries_of
from sparsity_worker.plugin.ranks import Ranks
from sparsity_worker.plugin.torch_attention import TorchAttention
from sparsity_worker.profiles.profile import Profile
from sparsity_worker.profiles.served_tiers import tiers_of

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sparsity_worker.plugin.triton_attention import TritonAttention

log = logging.getLogger("sparsity.worker")


def kernels_of(device: str) -> str:
    """`triton` on GPUs, and where Triton's interpreter stands in for one; else `torch`."""
    return "torch" if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1" else "triton"


def cuda_graphs(runner: ModelRunner) -> bool:
    """Whether decode is replayed from CUDA graphs."""
    return str(runner.device) != "cpu" and not runner.server_args.disable_cuda_graph


class SparsityAttnBackend(AttentionBackend):  # type: ignore[misc]
    """Block-sparse prefill and sparse paged decode by the profiles in the model config, each request by its tier's.

    Attributes:
        accounts: whether what requests attend is reported.
        profiles: of the tiers, the densest first; that of the dense one attends everything.
        places: of the tiers among these, by name.

    Raises:
        ConfigurationError: at start, naming the option it cannot serve.
    """

    accounts: ClassVar[bool] = True

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__()
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        tiers = self._tiers(runner)
        self.profiles, self.places = tuple(tiers.values()), {tier: place for place, tier in enumerate(tiers)}
        self._refuse_unsupported(runner)
        pool = self.token_to_kv_pool
        keys = pool.get_key_buffer(pool.start_layer)
        self._ranks = Ranks.of(runner.model_config.get_total_num_kv_heads())
        for profile in self.profiles:
            try:
                profile.check(runner.model_config.num_hidden_layers, self._ranks.kv_heads)
            except ValueError as error:
                raise ConfigurationError(f"profile {profile.label}: {error}") from error
        self.profiles = tuple(profile.for_heads(self._ranks.own_heads) for profile in self.profiles)
        self._page = self.profiles[0].block_size
        self._caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        layers = range(pool.start_layer, pool.start_layer + pool.layer_num)
        summaries = self._summaries(layers)
        self.ledger = Ledger(runner.model_config.num_hidden_layers, capacity=4 * self.req_to_token_pool.size)
        self.prompts: dict[str, Prompt] = {}
        self.followed: dict[str, Followed] = {}
        self._replayed: GraphedAttention | None = None
        self.attention = self._attention(runner, summaries)
        rows, device = self.req_to_token_pool.req_to_token.shape[0], keys.device
        self._dense_rows = DenseRows(rows, [each.decode_from for each in self.profiles], self.ledger, device)
        self._facts = {
            "kernels": self._kernels(runner),
            "cuda_graphs": cuda_graphs(runner),
            "kv_bytes": 2 * keys.nbytes * len(layers),
            "summary_bytes": sum(layer.nbytes for layer in summaries.values()),
        }

    def _kernels(self, runner: ModelRunner) -> str:
        if kernels_of(str(runner.device)) == "torch":
            return "torch"
        # Only here: Triton is not needed on the CPU.
        from sparsity_worker.profiles.kernels import prefill_kernels

        return prefill_kernels(self.profiles, self._paged(self.token_to_kv_pool.start_layer)[0])

    def _tiers(self, runner: ModelRunner) -> dict[str, Profile]:
        return tiers_of(runner.model_config, runner.model_config.num_hidden_layers)

    def _summaries(self, layers: range) -> dict[int, PageSummaries]:
        return summaries_of(self._paged(layers.start)[0], self.profiles[0].sub_block, layers)

    def facts(self) -> str:
        """How it was set up, as JSON."""
        return json.dumps(self._facts)

    def book(self, forward_batch: ForwardBatch) -> None:
        """Enters what a batch attended into the ledger, after its last layer."""
        self.attention.book()
        self._dense_rows.book()
        if self._ranks.size > 1 and forward_batch.rids:
            self.ledger.settle(forward_batch.rids, self._ranks.add_up)

    def packed(self, rid: str) -> Packed:
        """A request's account up to the batch that was booked last."""
        return Packed(self.ledger, rid, self.followed.get(rid))

    def _attention(self, runner: ModelRunner, summaries: dict[int, PageSummaries]) -> Attention:
        # Without the columns that SGLang keeps past the longest context: tables would be twice as wide to hold them.
        slots = self.req_to_token_pool.req_to_token[:, : runner.model_config.context_len]
        shared = (self.profiles, summaries, slots, self.ledger)
        if kernels_of(str(runner.device)) == "torch":
            return TorchAttention(*shared)
        # Only here: Triton is not needed on the CPU.
        from sparsity_worker.plugin.triton_attention import TritonAttention

        try:
            heads, layers = runner.model_config.num_attention_heads // self._ranks.size, sorted(summaries)
            found = self._replayed = TritonAttention(*shared, heads)
            prices = [each.attended for each in found.step_prices()]
            self.ledger.price_steps(layers, prices, heads, self._ranks.size)
            if str(runner.device) != "cpu":
                self._warm_up(found, heads, slots.shape[1])
            return found
        except ValueError as error:
            labels = ", ".join(each.label for each in self.profiles if not each.dense)
            raise ConfigurationError(f"profile {labels}: {error}") from error

    def _warm_up(self, attention: TritonAttention, heads: int, context: int) -> None:
        from sparsity_worker.plugin.compiling import tell_of_compiling
        from sparsity_worker.plugin.warm_up import Served, warm_up

        began, dim = time.monotonic(), self._paged(attention.layers[0])[0].shape[3]
        warm_up(attention, self.profiles, self._paged, Served(heads, dim, context, self.req_to_token_pool.size))
        torch.cuda.synchronize()
        log.info("kernels were compiled or loaded, and ran, in %.1f s", time.monotonic() - began)
        tell_of_compiling()

    def _paged(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, ``[pages, page, Hkv, D]``; the pool keeps them as long as it is there."""
        found = self._caches.get(layer)
        if found is None:
            pool = self.token_to_kv_pool
            keys, values = (
                cache.view(-1, self._page, *cache.shape[1:])
                for cache in (pool.get_key_buffer(layer), pool.get_value_buffer(layer))
            )
            found = self._caches[layer] = keys, values
        return found

    def _refuse_unsupported(self, runner: ModelRunner) -> None:
        if str(runner.device).partition(":")[0] not in ("cpu", "cuda"):
            raise ConfigurationError(f"device: the {BACKEND} backend runs on cpu and cuda, not {runner.device}")
        if envs.SGLANG_ENABLE_METADATA_GLUE_GRAPH.get():
            raise ConfigurationError("SGLANG_ENABLE_METADATA_GLUE_GRAPH: must be off; a batch is prepared on the host")
        cached = self.token_to_kv_pool.get_key_buffer(self.token_to_kv_pool.start_layer).dtype
        if cached not in (torch.float32, torch.float16, torch.bfloat16):
            reason = "pages are summarized and chosen by keys as they are, and no kernel scales them back"
            problem = f"must be 16 or 32 bits wide, not {cached}: {reason}; set bfloat16, or serve this model dense"
            raise ConfigurationError(f"kv_cache_dtype: {problem}")
        if runner.page_size != (wanted := self.profiles[0].block_size):
            raise ConfigurationError(f"page_size: must equal the profile's block_size {wanted}, not {runner.page_size}")
        if isinstance(self.token_to_kv_pool, SWAKVPool):
            raise ConfigurationError("model: sliding-window KV pools are not supported; serve this model dense")
        if runner.use_mla_backend:
            raise ConfigurationError("model: MLA models are not supported; serve this model dense, or by index_topk")
        if runner.model_config.is_encoder_decoder:
            raise ConfigurationError("model: encoder-decoder models are not supported; serve this model dense")

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """What the layers of a batch share.

        Raises:
            ConfigurationError: under speculative decoding.
        """
        if forward_batch.spec_info is not None:
            raise ConfigurationError("speculative_algorithm: speculative decoding is not supported by this backend")
        decode = forward_batch.forward_mode.is_decode_or_idle()
        spans = Spans.of(forward_batch, self.prompts)
        self.attention.prepare(spans, decode)
        if decode and self._replayed is not None:
            self._dense_rows.stage(spans)
            self.init_forward_metadata_in_graph(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Buffers of decode under CUDA graphs."""
        self._graphed().allocate(max_bs)

    def _graphed(self) -> GraphedAttention:
        if self._replayed is None:
            raise ConfigurationError("disable_cuda_graph: must be set where the torch kernels attend")
        return self._replayed

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Fills the buffers for a capture, or for a replay of the batch that was made last.

        Raises:
            ConfigurationError: for a prefill batch, whose attention cannot lie in a graph.
        """
        if not forward_batch.forward_mode.is_decode_or_idle():
            raise ConfigurationError(f"cuda_graph_config: whole prefill graphs have no {BACKEND} attention; break them")
        slots, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        count = 0 if in_capture else slots.shape[0] - int(getattr(forward_batch, "num_padding", 0) or 0)
        # A replayed batch does not name its requests; they are those of the batch made last, in its order.
        rids = list(self.prompts)[:count]
        on_host = on_the_host(forward_batch, "seq_lens")[:count] if count else []
        spans = Spans.named(rids, [0] * count, on_host, [1] * count, self.prompts)
        self._graphed().stage(spans, slots, lengths)
        self._dense_rows.stage(spans)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """What a graph does before the first layer of decode: by the newest tokens, which the host may not know yet."""
        self._dense_rows.apply(*self._graphed().decoding(), forward_batch.input_ids)

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
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, decode=False)

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
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, decode=True)

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
        *,
        decode: bool,
    ) -> torch.Tensor:
        _refuse_layer(layer)
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch), k, v)
        keys, values = self._paged(layer.layer_id)
        rows = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        return self.attention.attend(rows, keys, values, layer, decode).view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Context length of padding rows."""
        return 1

    def support_triton(self) -> bool:
        """Whether SGLang may use its own Triton kernels around it; on the CPU there are none."""
        return False


def _refuse_layer(layer: RadixAttention) -> None:
    if layer.is_cross_attention or layer.attn_type not in (AttentionType.DECODER, AttentionType.DECODER.value):
        raise ConfigurationError(f"model: layer {layer.layer_id} is not causal self-attention; serve this model dense")
    if layer.logit_cap or (layer.sliding_window_size or -1) > -1:
        raise ConfigurationError(f"model: layer {layer.layer_id} has a logit cap or window; serve this model dense")
