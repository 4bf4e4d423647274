"""Registers the `sparsity` backend and the hooks that carry its accounts out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from sparsity_worker.keys import BACKEND, FACTS_KEY, REPORT_KEY
from sparsity_worker.plugin.accounts.packing import Followed
from sparsity_worker.plugin.backend import SparsityAttnBackend
from sparsity_worker.plugin.indexer import IndexerMeter
from sparsity_worker.plugin.memory import CELL_SIZE, charge


def register() -> None:
    """Entry point of the plugin group `sglang.srt.plugins`."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    register_attention_backend(BACKEND)(SparsityAttnBackend)
    HookRegistry.register(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new", _note_prompts, HookType.AFTER
    )
    HookRegistry.register(
        "sglang.srt.model_executor.model_runner.ModelRunner.forward", _attach_accounts, HookType.AFTER
    )
    HookRegistry.register(CELL_SIZE, charge, HookType.AFTER)


def _accountant(runner: Any) -> SparsityAttnBackend | IndexerMeter | None:
    """Who counts what a runner attends; nobody on the dense tier."""
    backend = getattr(runner, "attn_backend", None)
    return backend if isinstance(backend, SparsityAttnBackend) else IndexerMeter.of(runner)


def _note_prompts(result: Any, *args: Any, **_: Any) -> None:
    """A forward batch knows its chunk only; the last chunk of a prompt is told by the whole prompt's length."""
    batch, runner = next((pair for pair in pairwise(args) if hasattr(pair[0], "reqs")), (None, None))
    if batch is not None and (accountant := _accountant(runner)) is not None:
        accountant.followed = {req.rid: Followed.of(req) for req in batch.reqs}
        accountant.prompts = {rid: each.prompt() for rid, each in accountant.followed.items()}


def _attach_accounts(result: Any, runner: Any, forward_batch: Any, *_: Any, **__: Any) -> None:
    """Puts each request's account into the logits output, whence SGLang takes it to `meta_info`."""
    if (accountant := _accountant(runner)) is None:
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
