"""SGLang's calls of a backend around CUDA graphs, by its own classes and without a GPU.

The batches are made by the methods of SGLang's graph runners, and what a graph would replay is run once more.
`python -m support.kernels.graph_calls` prints one JSON object of what each case found.
Needs TRITON_INTERPRET=1 and SGLANG_USE_CPU_ENGINE=1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from sglang.srt.environ import envs
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.cuda_graph_buffer_registry import build_decode_registry
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner, build_replay_fb_view
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
from sglang.srt.model_executor.runner_utils.buffers import DecodeInputBuffers
from sglang.srt.runtime_context import get_parallel
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.keys import CONFIG_KEY, REPORT_KEY
from sparsity_worker.plugin.accounts.ledger import Account
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL
from sparsity_worker.plugin.attention import Prompt
from sparsity_worker.plugin.backend import SparsityAttnBackend
from sparsity_worker.plugin.dense_backend import DenseAttnBackend
from sparsity_worker.plugin.ranks import Ranks
from sparsity_worker.plugin.register import _attach_accounts, end_chunks_on_tiles
from sparsity_worker.plugin.warm_up import Served, warm_up
from support.kernels.interpreter import spare_the_interpreter
from support.workers.profiles import moderate_document, profile_document

_LAYERS, _HEADS, _KV_HEADS, _DIM, _CONTEXT, _SLOTS = 2, 4, 2, 16, 1024, 4096
_GRAPH_SIZE = 4


class Runner(SimpleNamespace):
    """What the backend reads of SGLang's model runner, around real pools."""

    attends: ClassVar[type[SparsityAttnBackend]] = SparsityAttnBackend
    others: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        cached: torch.dtype = torch.float32,
        *,
        pool: Any = None,
        latent: bool = False,
        encoder: bool = False,
        page: int = 64,
        on: str = "cpu",
        **profile: Any,
    ) -> None:
        pool = pool or MHATokenToKVPool(
            size=_SLOTS, page_size=64, dtype=cached, head_num=_KV_HEADS, head_dim=_DIM, layer_num=_LAYERS,
            device="cpu", enable_memory_saver=False,
        )  # fmt: skip
        own = profile_document() | profile
        told = {CONFIG_KEY: {**self.others, own["tier"]: own}}
        config = SimpleNamespace(
            hf_config=SimpleNamespace(**told), num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS, is_encoder_decoder=encoder, context_len=_CONTEXT, vocab_size=256,
            get_total_num_kv_heads=lambda: _KV_HEADS,
        )  # fmt: skip
        super().__init__(
            req_to_token_pool=ReqToTokenPool(8, _CONTEXT, "cpu", enable_memory_saver=False), token_to_kv_pool=pool,
            model_config=config, device=on, page_size=page, use_mla_backend=latent, lora_manager=None,
            server_args=SimpleNamespace(disable_cuda_graph=False), spec_algorithm=MagicMock(),
            hisparse_coordinator=None, kv_index_translator=MagicMock(),
            ngram_embedding_manager=SimpleNamespace(enabled=False), attn_tp_sequence_sharded=lambda tokens: False,
            prepare_dummy_forward_batch=lambda batch: batch,
        )  # fmt: skip
        self.attn_backend = self.attends(self)
        heads = (_HEADS, _DIM, _DIM**-0.5, _KV_HEADS)
        self.layers = [RadixAttention(*heads, layer) for layer in range(_LAYERS)]
        self.draw = torch.Generator().manual_seed(0)

    def context(self, batch: Any) -> AbstractContextManager[None]:
        return forward_context(ForwardContext(attn_backend=self.attn_backend), forward_batch=batch)

    def forward(self, batch: Any, rows: torch.Tensor | None = None) -> list[torch.Tensor]:
        """All layers, with random queries, keys and values, or those of ``rows``, ``[tokens, Hq + 2 Hkv, D]``."""
        if rows is None:
            rows = self.rows(len(batch.input_ids))
        q, k, v = (part.flatten(1) for part in rows.split((_HEADS, _KV_HEADS, _KV_HEADS), dim=1))
        with self.context(batch):
            return [layer(q, k, v, batch) for layer in self.layers]

    def rows(self, count: int) -> torch.Tensor:
        return torch.randn(count, _HEADS + 2 * _KV_HEADS, _DIM, generator=self.draw)

    def place(self, slot: int, length: int) -> torch.Tensor:
        """Gives a row of the pool of requests tokens of the cache: pages of its own."""
        tokens = torch.arange(length) + slot * 704
        self.req_to_token_pool.req_to_token[slot, :length] = tokens.int()
        return tokens

    def account(self, batch: Any) -> list[Account]:
        result = SimpleNamespace(logits_output=SimpleNamespace(customized_info=None))
        _attach_accounts(result, self, batch)
        found = result.logits_output.customized_info
        return [Account.unpack(bytes(packed)) for packed in found[REPORT_KEY]] if found else []


def batch_of(runner: Runner, lengths: Sequence[int], new: Sequence[int] | None = None, prefix: str = "r") -> Any:
    """A real batch: of prefill with ``new`` tokens each, else of decode."""
    count = len(lengths)
    tokens = [runner.place(slot + 1, length) for slot, length in enumerate(lengths)]
    fresh = [1] * count if new is None else list(new)
    rids = [f"{prefix}{number}" for number in range(count)]
    runner.attn_backend.prompts = {rid: Prompt(length) for rid, length in zip(rids, lengths, strict=True)}
    written = [each[len(each) - last :] for each, last in zip(tokens, fresh, strict=True)]
    extend = {
        "extend_seq_lens": torch.tensor(fresh, dtype=torch.int32), "extend_seq_lens_cpu": fresh,
        "extend_prefix_lens_cpu": [length - each for length, each in zip(lengths, fresh, strict=True)],
    }  # fmt: skip
    return ForwardBatch(
        forward_mode=ForwardMode.DECODE if new is None else ForwardMode.EXTEND, batch_size=count,
        input_ids=torch.zeros(sum(fresh), dtype=torch.int64), req_pool_indices=torch.arange(count) + 1,
        seq_lens=torch.tensor(lengths), seq_lens_cpu=torch.tensor(lengths), seq_lens_sum=sum(lengths),
        out_cache_loc=torch.cat([torch.zeros(0, dtype=torch.int64), *written]),
        positions=torch.zeros(sum(fresh), dtype=torch.int64), rids=rids, **({} if new is None else extend),
    )  # fmt: skip


def prefill(runner: Runner, lengths: Sequence[int], prefix: str = "r") -> list[Account]:
    batch = batch_of(runner, lengths, lengths, prefix)
    runner.attn_backend.init_forward_metadata(batch)
    runner.forward(batch)
    return runner.account(batch)


def capture_prefill(runner: Runner, tokens: int) -> Any:
    """As SGLang captures a broken prefill graph: the batch is made once and run again and again."""
    own = MagicMock(
        model_runner=runner, max_context_size=None, dllm_attention=None, _is_full_backend=False, max_bs=8, device="cpu",
        prefill_backend_name="breakable", _prefill_static_buffers=None, require_mlp_tp_gather=False,
        require_attn_tp_gather=False, _capture_lora=False,
    )  # fmt: skip
    own._build_capture_spec_info.return_value = None
    own.buffer_registry.get_slot.return_value.slice_for = lambda size, count: torch.zeros(count, dtype=torch.int64)
    batch, backend = PrefillCudaGraphRunner.capture_prepare(own, tokens)
    with runner.context(batch):
        backend.init_forward_metadata(batch)
    for _ in range(2):
        runner.forward(batch)
    return batch


class DecodeGraph:
    """As SGLang captures and replays decode of up to so many requests."""

    def __init__(self, runner: Runner) -> None:
        backend = runner.attn_backend
        self.runner, self.fill = runner, backend.get_cuda_graph_seq_len_fill_value()
        backend.init_cuda_graph_state(_GRAPH_SIZE, _GRAPH_SIZE)
        self.buffers = DecodeInputBuffers.create(
            device=torch.device("cpu"), max_bs=_GRAPH_SIZE, max_num_token=_GRAPH_SIZE, hidden_size=8,
            next_token_logits_buffer=torch.zeros(_GRAPH_SIZE, 8), dtype=torch.float32, num_dp_ranks=1, pp_size=1,
            is_encoder_decoder=False, require_mlp_tp_gather=False, seq_len_fill_value=self.fill,
            encoder_len_fill_value=0, num_tokens_per_req=1, cache_loc_dtype=torch.int64, enable_mamba_track=False,
        )  # fmt: skip
        self.registry = build_decode_registry(
            device=torch.device("cpu"), max_bs=_GRAPH_SIZE, max_num_token=_GRAPH_SIZE, seq_len_fill_value=self.fill,
            cache_loc_dtype=torch.int64, share_pool=False, source=self.buffers,
        )  # fmt: skip
        own = MagicMock(
            model_runner=runner, buffers=self.buffers, buffer_registry=self.registry, captured_req_width=1, pp_size=1,
            attn_backend=backend, capture_forward_mode=ForwardMode.DECODE, capture_hidden_mode=CaptureHiddenMode.NULL,
        )  # fmt: skip
        own.get_spec_info.return_value = own._global_num_tokens_for_graph.return_value = None
        self.batch, _, _ = DecodeCudaGraphRunner.capture_prepare(own, _GRAPH_SIZE)
        backend.init_forward_metadata_out_graph(self.batch, in_capture=True)

    def run(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """What the graph holds."""
        self.runner.attn_backend.init_forward_metadata_in_graph(self.batch)
        return self.runner.forward(self.batch, rows)

    def replay(self, batch: Any, rows: torch.Tensor) -> list[torch.Tensor]:
        """One step of a batch, padded to the graph's size."""
        count = batch.batch_size
        self.registry.fill_from(
            batch, raw_bs=count, padded_bs=_GRAPH_SIZE, raw_num_tokens=count, padded_num_tokens=_GRAPH_SIZE
        )
        view = build_replay_fb_view(
            forward_batch=batch, buffers=self.buffers, bs=_GRAPH_SIZE, raw_bs=count, num_tokens=_GRAPH_SIZE,
            global_num_tokens_cpu=None, seq_len_fill_value=self.fill, capture_forward_mode=ForwardMode.DECODE,
            is_encoder_decoder=False,
        )  # fmt: skip
        self.runner.attn_backend.init_forward_metadata_out_graph(view)
        return [out[:count] for out in self.run(torch.cat([rows, self.runner.rows(_GRAPH_SIZE - count)]))]


def densities(accounts: Sequence[Account], phase: int) -> list[list[float]]:
    return [account.density(phase).tolist() for account in accounts]


def captured_prefill() -> Any:
    """A capture, then prompts of requests that there are: short ones must be unmarked by the long one captured."""
    runner = Runner()
    batch = capture_prefill(runner, 320)
    mine = runner.account(batch)
    short = prefill(runner, [40, 70])
    capture_prefill(runner, 320)
    long = prefill(runner, [40, 300], "s")
    alone = prefill(Runner(), [40, 300], "s")
    return {
        "rids": batch.rids, "booked": len(mine), "entries": len(runner.attn_backend.ledger),
        "short": densities(short, PREFILL), "long": densities(long, PREFILL), "alone": densities(alone, PREFILL),
        "calls": [account.calls for account in short + long],
    }  # fmt: skip


def padded_decode() -> Any:
    """Three requests in a graph of four, and the same ones without it."""
    runner = Runner()
    graph, lengths = DecodeGraph(runner), [400, 30, 301]
    graph.run(runner.rows(_GRAPH_SIZE))
    prefill(runner, lengths)
    batch = batch_of(runner, [length + 1 for length in lengths])
    rows = runner.rows(3)
    replayed = graph.replay(batch, rows)
    counted = runner.account(batch)
    # By other names: a request's token counts once.
    batch = batch_of(runner, [length + 1 for length in lengths], prefix="e")
    runner.attn_backend.init_forward_metadata(batch)
    eager = runner.forward(batch, rows)
    again = runner.account(batch)
    return {
        "difference": max((a - b).abs().max().item() for a, b in zip(replayed, eager, strict=True)),
        "magnitude": eager[0].abs().mean().item(),
        "entries": len(runner.attn_backend.ledger),
        "replayed": densities(counted, DECODE), "eager": densities(again, DECODE),
        "calls": [account.calls for account in counted + again],
    }  # fmt: skip


def dense_rows() -> Any:
    """Rows that turn dense by a token that only the device knows, or by their length in a batch of that size."""
    lengths, markers = [400, 340, 301], (5, 6)
    runner = Runner(decode_from={1: 0, 3: 332})
    # One layer tells as much, and decode takes long in the interpreter.
    runner.layers = runner.layers[1:]
    graph = DecodeGraph(runner)
    prefill(runner, lengths)
    told = {"none": (False, 0, 3), "opened": (False, 5, 3), "inside": (True, 0, 3), "closed": (True, 6, 3)}
    told["alone"] = (False, 0, 1)
    rows, outputs, counted = runner.rows(3), {}, {}
    for name, (reasoning, token, count) in told.items():
        batch = batch_of(runner, [length + 1 for length in lengths[:count]])
        batch.input_ids[0] = token
        first = runner.attn_backend.prompts["r0"]._replace(reasoning=reasoning, markers=markers)
        runner.attn_backend.prompts["r0"] = first
        (outputs[name],) = graph.replay(batch, rows[:count])
        counted[name] = densities(runner.account(batch), DECODE)
    pairs = {"opened": "inside", "closed": "none", "inside": "none", "alone": "none"}
    differences = {
        name: [
            (outputs[name] - outputs[other][: told[name][2]])[row].abs().max().item() for row in range(told[name][2])
        ]
        for name, other in pairs.items()
    }
    return {"differences": differences, "first": counted["none"], "last": counted["alone"]}


def padded_eager() -> Any:
    """Eager decode of more rows than requests; and idle batches, of padding only and of nothing."""
    runner = Runner()
    prefill(runner, [300])
    batch = batch_of(runner, [301, 1])
    batch.rids = ["r0"]
    runner.attn_backend.init_forward_metadata(batch)
    runner.forward(batch)
    accounts = runner.account(batch)
    for count in (2, 0):
        idle = batch_of(runner, [1] * count)
        idle.forward_mode, idle.rids = ForwardMode.IDLE, []
        if count:
            runner.attn_backend.init_forward_metadata(idle)
        runner.forward(idle, runner.rows(count))
        assert not runner.account(idle)
    return {"entries": len(runner.attn_backend.ledger), "calls": [account.calls for account in accounts]}


def unknown_prompts() -> Any:
    """A batch whose requests were never told of is taken by its own lengths."""
    runner = Runner()
    graph = DecodeGraph(runner)
    prefill(runner, [300])
    batch = batch_of(runner, [301])
    runner.attn_backend.prompts = {}
    graph.replay(batch, runner.rows(1))
    accounts = runner.account(batch)
    again = batch_of(runner, [300], [300], prefix="t")
    runner.attn_backend.prompts = {}
    runner.attn_backend.init_forward_metadata(again)
    runner.forward(again)
    return {"decoded": [account.calls for account in accounts], "density": densities(runner.account(again), PREFILL)}


def warmed() -> Any:
    """A warm-up, of which no page, no account and no answer afterwards knows."""
    runner, cold = Runner(), Runner()
    backend, pool = runner.attn_backend, runner.token_to_kv_pool
    before = [pool.get_key_buffer(layer)[64:].clone() for layer in range(_LAYERS)]
    warm_up(backend.attention, backend.profiles, backend._paged, Served(_HEADS, _DIM, 320, 2))
    same = [bool(torch.equal(pool.get_key_buffer(layer)[64:], before[layer])) for layer in range(_LAYERS)]
    entries = len(backend.ledger)
    batch = batch_of(runner, [300], [300])
    rows = runner.rows(300)
    outs = []
    for each in (runner, cold):
        batch = batch_of(each, [300], [300])
        each.attn_backend.init_forward_metadata(batch)
        outs.append(each.forward(batch, rows))
    return {
        "same": same, "entries": entries,
        "difference": max((a - b).abs().max().item() for a, b in zip(*outs, strict=True)),
        "density": densities(runner.account(batch), PREFILL),
    }  # fmt: skip


class DenseRunner(Runner):
    """Of the dense tier by our kernels."""

    attends = DenseAttnBackend


def dense_tier() -> Any:
    """A prompt in two chunks beside a short one, then decode by a graph: beside attention that torch computes."""
    runner, lengths = DenseRunner(), [300, 70]
    # One layer tells as much.
    runner.layers = runner.layers[1:]
    graph = DecodeGraph(runner)
    rows = [runner.rows(length + 1) for length in lengths]
    found: list[list[torch.Tensor]] = [[], []]

    def attend(batch: Any, parts: list[torch.Tensor]) -> None:
        runner.attn_backend.init_forward_metadata(batch)
        (out,) = runner.forward(batch, torch.cat(parts))
        for each, piece in zip(found, out.split([len(part) for part in parts]), strict=False):
            each.append(piece)

    attend(batch_of(runner, [200], [200]), [rows[0][:200]])
    attend(batch_of(runner, lengths, [100, 70]), [rows[0][200:300], rows[1][:70]])
    batch = batch_of(runner, [length + 1 for length in lengths])
    (out,) = graph.replay(batch, torch.stack([each[-1] for each in rows]))
    for each, step in zip(found, out, strict=True):
        each.append(step[None])
    differences = []
    for each, own in zip(found, rows, strict=True):
        q, k, v = (part.transpose(0, 1) for part in own.split((_HEADS, _KV_HEADS, _KV_HEADS), dim=1))
        wanted = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
        differences.append((torch.cat(each) - wanted.transpose(0, 1).flatten(1)).abs().max().item())
    facts = json.loads(runner.attn_backend.facts())
    return {
        "differences": differences, "accounts": len(runner.account(batch)), "entries": len(runner.attn_backend.ledger),
        "summary_bytes": facts["summary_bytes"],
    }  # fmt: skip


class SharedRunner(Runner):
    """Of all tiers."""

    others: ClassVar[dict[str, Any]] = {"dense": None, "moderate": moderate_document()}


class ModerateRunner(Runner):
    """Of the other sparse tier alone."""

    def __init__(self) -> None:
        super().__init__(**moderate_document())


def shared_tiers() -> Any:
    """Requests of three tiers in one batch of prefill and in one graph of decode, beside each of them alone."""
    lengths, shared = [40, 330, 330], SharedRunner()
    rows = [shared.rows(length + 2) for length in lengths]

    def attended(runner: Runner, mine: Sequence[int]) -> tuple[list[torch.Tensor], list[Account]]:
        """What requests get in prefill and two steps, of tiers that are numbered as the requests where it has more."""
        # One layer tells as much.
        runner.layers = runner.layers[1:]
        graph, backend = DecodeGraph(runner), runner.attn_backend
        own = [lengths[number] for number in mine]

        def told(batch: Any) -> Any:
            for tier, (rid, prompt) in enumerate(list(backend.prompts.items())):
                backend.prompts[rid] = prompt._replace(tier=tier)
            return batch

        batch = told(batch_of(runner, own, own))
        backend.init_forward_metadata(batch)
        (out,) = runner.forward(batch, torch.cat([rows[number][:-2] for number in mine]))
        found, accounts = [[part] for part in out.split(own)], runner.account(batch)
        for step in range(2):
            batch = told(batch_of(runner, [length + step + 1 for length in own]))
            (out,) = graph.replay(batch, torch.stack([rows[number][step - 2] for number in mine]))
            found, accounts = (
                [[*each, part] for each, part in zip(found, out.split(1), strict=True)],
                runner.account(batch),
            )
        return [torch.cat(each) for each in found], accounts

    together, accounts = attended(shared, (0, 1, 2))
    alone = [attended(each, (number,)) for number, each in enumerate((DenseRunner(), ModerateRunner(), Runner()))]
    return {
        "differences": [(mine - own[0]).abs().max().item() for mine, (own, _) in zip(together, alone, strict=True)],
        "magnitude": together[2].abs().mean().item(),
        "told": [[each.density(phase).tolist() for phase in (PREFILL, DECODE)] for each in accounts],
        "alone": [[own.density(phase).tolist() for phase in (PREFILL, DECODE)] for _, (own,) in alone[1:]],
    }


def refusals() -> Any:
    """What cannot be served is said at start."""

    def told(call: Callable[[], object]) -> str:
        try:
            call()
        except ConfigurationError as error:
            return str(error)
        return ""

    runner = Runner()
    prompt = batch_of(runner, [64], [64])
    with envs.SGLANG_ENABLE_METADATA_GLUE_GRAPH.override(True):
        glued = told(Runner)
    narrow = told(lambda: Runner(torch.float8_e4m3fn))
    halves = SWAKVPool(
        size=_SLOTS, size_swa=_SLOTS // 2, page_size=64, dtype=torch.float32, head_num=_KV_HEADS, head_dim=_DIM,
        swa_attention_layer_ids=[0], full_attention_layer_ids=[1], device="cpu",
    )  # fmt: skip
    heads = (_HEADS, _DIM, _DIM**-0.5, _KV_HEADS)
    layers = {
        "window": RadixAttention(*heads, 0, sliding_window_size=128),
        "cap": RadixAttention(*heads, 0, logit_cap=30.0),
        "cross": RadixAttention(*heads, 0, is_cross_attention=True),
        "encoder layer": RadixAttention(*heads, 0, attn_type=AttentionType.ENCODER_ONLY),
    }

    def attend(layer: RadixAttention) -> None:
        rows = runner.rows(64)
        q, k, v = (part.flatten(1) for part in rows.split((_HEADS, _KV_HEADS, _KV_HEADS), dim=1))
        runner.attn_backend.forward_extend(q, k, v, layer, prompt)

    drafted = SimpleNamespace(spec_info=object())
    config, plain = runner.model_config, SimpleNamespace(hf_config=SimpleNamespace())
    held = ((config, None), (config, 96), (plain, None))
    schedulers = [SimpleNamespace(model_config=each, truncation_align_size=own) for each, own in held]
    for scheduler in schedulers:
        end_chunks_on_tiles(None, scheduler)
    return {
        "full": told(lambda: runner.attn_backend.init_forward_metadata_out_graph(prompt, True)),
        "glue": glued,
        "narrow": narrow,
        "windows": told(lambda: Runner(pool=halves)),
        "latent": told(lambda: Runner(latent=True)),
        "encoder": told(lambda: Runner(encoder=True)),
        "page": told(lambda: Runner(page=128)),
        "device": told(lambda: Runner(on="xpu")),
        "drafts": told(lambda: runner.attn_backend.init_forward_metadata(drafted)),
        **{name: told(partial(attend, layer)) for name, layer in layers.items()},
        "chunks": [
            runner.attn_backend.profiles[0].prefill.query_tile,
            *(each.truncation_align_size for each in schedulers),
        ],
    }


CASES: dict[str, Callable[[], Any]] = {
    case.__name__: case
    for case in (
        captured_prefill,
        padded_decode,
        dense_rows,
        padded_eager,
        unknown_prompts,
        dense_tier,
        shared_tiers,
        warmed,
        refusals,
    )
}

if __name__ == "__main__":
    spare_the_interpreter()
    Ranks.of = classmethod(lambda cls, kv_heads: cls(kv_heads))  # type: ignore[method-assign,assignment]
    with get_parallel().override(moe_ep_size=1):
        json.dump({name: case() for name, case in CASES.items()}, sys.stdout)
