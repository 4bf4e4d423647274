"""What SGLang runs beside what it was asked for: where it lowers or replaces that, it says so in its log only."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.config import WorkerConfig
from sparsity_worker.keys import BACKEND, RUNNING_KEY

log = logging.getLogger("sparsity.worker")


@dataclass(frozen=True, slots=True)
class Running:
    """What the scheduler of rank 0 says of itself, once it is ready.

    Attributes:
        max_requests: that it computes for at once.
        kv_tokens: that its KV cache holds.
        page_size: tokens of a page of it.
        chunk_tokens: of a prompt that it reads at once; 0 without a bound.
        context_length: prompt plus completion, tokens.
        dtype: that it computes in.
        ranks: that share each layer's heads.
        backends: which attend prompts and which decode, by SGLang's names.
        overlap: whether it prepares a step while the last one runs.
        setup: how that backend was set up, by the fields of `EngineFacts`.
        missing: functions of SGLang that the plugin was to change, and did not find.
    """

    max_requests: int
    kv_tokens: int
    page_size: int
    chunk_tokens: int
    context_length: int
    dtype: str
    ranks: int
    backends: Sequence[str]
    overlap: bool
    setup: Mapping[str, Any]
    missing: Sequence[str]

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Self:
        """Of what a scheduler sent.

        Raises:
            ConfigurationError: when the plugin that adds to it was not loaded.
        """
        told = info.get(RUNNING_KEY)
        if told is None:
            raise ConfigurationError(
                "SGLang did not load this package's plugin; install the package with its entry points, whole"
            )
        return cls(**told)

    @property
    def backend(self) -> str:
        """What attends, in a word."""
        return "+".join(dict.fromkeys(self.backends))


def check_running(config: WorkerConfig, arguments: Mapping[str, Any], running: Running) -> None:
    """Compares what SGLang was asked for with what it runs; what only costs time is told in the log.

    Args:
        config: the worker's options.
        arguments: that SGLang was started with.
        running: what came of them.

    Raises:
        ConfigurationError: naming each option that it did not keep to, and the remedy.
    """
    if not running.overlap and arguments.get("disable_overlap_schedule") is False:
        log.warning("SGLang does not prepare a step while the last one runs: it turned --overlap off for this model")
    wrong = list(_differences(config, arguments, running))
    if wrong:
        raise ConfigurationError("; ".join(wrong))


def _differences(config: WorkerConfig, arguments: Mapping[str, Any], running: Running) -> Iterator[str]:
    if running.missing:
        yield f"this version of SGLang lacks what the plugin changes: {', '.join(running.missing)}"
    asked = int(arguments["max_running_requests"])
    if running.max_requests < asked:
        yield (
            f"--max-requests: {asked} were asked for, and SGLang takes {running.max_requests} at once with"
            f" {running.kv_tokens} tokens of KV cache; give --max-requests {running.max_requests}, or a larger"
            " --max-total-tokens or --mem-fraction"
        )
    # Whole pages are kept.
    if config.max_total_tokens and running.kv_tokens <= config.max_total_tokens - running.page_size:
        yield (
            f"--max-total-tokens: {config.max_total_tokens} were asked for, and the memory holds {running.kv_tokens};"
            " ask for no more, raise --mem-fraction, or leave it out, which takes what the memory holds"
        )
    if running.chunk_tokens != (chunk := int(arguments["chunked_prefill_size"])):
        yield f"--chunked-prefill-tokens: SGLang reads {running.chunk_tokens or 'all'} at once in place of {chunk}"
    if running.context_length < (context := int(arguments["context_length"])):
        yield f"--model: SGLang serves {running.context_length} of its {context} tokens of context"
    if running.dtype != arguments["dtype"]:
        yield f"--dtype: SGLang computes in {running.dtype} in place of {arguments['dtype']}; ask for that"
    if running.ranks != config.tensor_parallel:
        yield f"--tensor-parallel: SGLang has {running.ranks} ranks in place of {config.tensor_parallel}"
    named = arguments.get("attention_backend")
    # What models bring themselves goes by names of several parts.
    if named in (config.dense_backend, BACKEND) and named and running.backend != named:
        yield (
            f"--dense-backend: SGLang attends by {running.backend} in place of {named}, which does not run here;"
            f" name {running.backend}, or leave it out"
        )
    elif config.dense_backend and running.page_size != (page := int(arguments["page_size"])):
        yield (
            f"--dense-backend: {named} keeps pages of {running.page_size} tokens in place of {page}; name another"
            " one, or leave it out"
        )
