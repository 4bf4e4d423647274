"""Registers the `sparsity` backend and the hooks that carry its accounts out."""

from __future__ import annotations

import json
import logging
import math
from itertools import pairwise
from typing import Any, Final

from sparsity_serving.logs import configure_logs

from sparsity_worker.keys import BACKEND, DENSE_BACKEND, FACTS_KEY, REPORT_KEY, RUNNING_KEY
from sparsity_worker.plugin.accounts.packing import Followed
from sparsity_worker.plugin.attention import accounted
from sparsity_worker.plugin.backend import SparsityAttnBackend, cuda_graphs
from sparsity_worker.plugin.choosing import scores, seeds
from sparsity_worker.plugin.choosing.grammars import MANAGER, give_grammars
from sparsity_worker.plugin.dense_backend import DenseAttnBackend
from sparsity_worker.plugin.indexer import IndexerMeter
from sparsity_worker.plugin.memory import CELL_SIZE, charge
from sparsity_worker.plugin.ranks import check_nodes
from sparsity_worker.profiles.served_tiers import block_profiles

CHUNK_ENDS: Final = "sglang.srt.managers.scheduler.Scheduler.init_dsa_kpool_truncation_align"
"""The last of SGLang's own words on where it cuts prompts."""
_READY: Final = "sglang.srt.managers.scheduler.Scheduler.get_init_info"


def register() -> None:
    """Entry point of the plugin group `sglang.srt.plugins`."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    logger = logging.getLogger("sparsity")
    if not logger.handlers:
        # SGLang's own processes log by its settings; what the backend says is to be seen there too.
        configure_logs(logger)
        logger.propagate = False
    register_attention_backend(BACKEND)(SparsityAttnBackend)
    register_attention_backend(DENSE_BACKEND)(DenseAttnBackend)
    HookRegistry.register(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", _note_prompts, HookType.AFTER
    )
    HookRegistry.register(
        "sglang.srt.model_executor.model_runner.ModelRunner.forward", _attach_accounts, HookType.AFTER
    )
    HookRegistry.register(_READY, tell_running, HookType.AFTER)
    HookRegistry.register(CELL_SIZE, charge, HookType.AFTER)
    HookRegistry.register(CHUNK_ENDS, check_nodes, HookType.AFTER)
    HookRegistry.register(CHUNK_ENDS, end_chunks_on_tiles, HookType.AFTER)
    HookRegistry.register(MANAGER, give_grammars, HookType.AFTER)
    HookRegistry.register(scores.BIASED, scores.require_finite, HookType.BEFORE)
    HookRegistry.register(scores.BIASED, scores.keep_finite, HookType.AFTER)
    HookRegistry.register(seeds.KEPT, seeds.drop_seeds, HookType.AFTER)
    HookRegistry.register(seeds.BATCH, seeds.give_seeds, HookType.AFTER)
    HookRegistry.register(seeds.MERGED, seeds.align_seeds, HookType.BEFORE)
    HookRegistry.register(seeds.CHOSEN, seeds.choose, HookType.AROUND)
    HookRegistry.register(seeds.DRAWN, seeds.draw, HookType.AROUND)


def end_chunks_on_tiles(_: Any, scheduler: Any) -> None:
    """Lets a prompt's chunks end on query tiles only: a tile that is read in parts selects by each part's rows.

    Args:
        scheduler: SGLang's, which has just said at what multiples it cuts prompts.
    """
    tiles = [profile.prefill.query_tile for profile in block_profiles(scheduler.model_config)]
    if tiles:
        scheduler.truncation_align_size = math.lcm(*tiles, scheduler.truncation_align_size or 1)


def tell_running(info: dict[str, Any], scheduler: Any, *_: Any, **__: Any) -> None:
    """Adds what a scheduler runs to what it says once it is ready: SGLang lowers and replaces what it was asked for.

    Args:
        info: that it sends to the process that started it.
        scheduler: SGLang's.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.runtime_context import get_parallel

    runner, backend = scheduler.tp_worker.model_runner, None
    if isinstance(runner.attn_backend, SparsityAttnBackend):
        backend = json.loads(runner.attn_backend.facts())
    info[RUNNING_KEY] = {
        "max_requests": int(scheduler.max_running_requests),
        "kv_tokens": int(scheduler.max_total_num_tokens),
        "page_size": int(scheduler.page_size),
        "chunk_tokens": int(scheduler.chunked_prefill_size or 0),
        "context_length": int(runner.model_config.context_len),
        "dtype": str(runner.dtype).removeprefix("torch."),
        "ranks": int(get_parallel().tp_size),
        "backends": (runner.prefill_attention_backend_str, runner.decode_attention_backend_str),
        "overlap": bool(scheduler.enable_overlap),
        "setup": backend or {"cuda_graphs": cuda_graphs(runner)},
        # A hook whose target is not there is only told in SGLang's log.
        "missing": sorted(set(HookRegistry._hooks) - HookRegistry._patched),
    }


def _accountant(runner: Any) -> SparsityAttnBackend | IndexerMeter | None:
    """Who counts what a runner attends; nobody on the dense tier."""
    backend = getattr(runner, "attn_backend", None)
    if isinstance(backend, SparsityAttnBackend):
        return backend if backend.accounts else None
    return IndexerMeter.of(runner)


def _note_prompts(result: Any, *args: Any, **_: Any) -> None:
    """A forward batch knows its chunk only; the last chunk of a prompt is told by the whole prompt's length."""
    batch, runner = next((pair for pair in pairwise(args) if hasattr(pair[0], "reqs")), (None, None))
    if batch is not None and (accountant := _accountant(runner)) is not None:
        accountant.followed = {req.rid: Followed.of(req, accountant.places) for req in batch.reqs}
        accountant.prompts = {rid: each.prompt() for rid, each in accountant.followed.items()}


def _attach_accounts(result: Any, runner: Any, forward_batch: Any, *_: Any, **__: Any) -> None:
    """Puts each request's account into the logits output, whence SGLang takes it to `meta_info`."""
    accountant = _accountant(runner)
    if accountant is None or not accounted(accountant.prompts.values()):
        return
    accountant.book(forward_batch)
    output = getattr(result, "logits_output", None)
    if output is not None and forward_batch.rids:
        info = dict(output.customized_info or {})
        info[REPORT_KEY] = [accountant.packed(rid) for rid in forward_batch.rids]
        probes = [rid in accountant.prompts and accountant.prompts[rid].probe for rid in forward_batch.rids]
        if any(probes):
            info[FACTS_KEY] = [accountant.facts() if probe else "" for probe in probes]
        output.customized_info = info
