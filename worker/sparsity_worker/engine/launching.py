"""Starts SGLang with what the worker's options and profiles say."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sparsity_serving import telemetry

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import DEVICES, pick_dtype, prepare_environment
from sparsity_worker.engine.forking import can_fork, forking_engine, remember_title
from sparsity_worker.engine.model_modules import disable_other_models

if TYPE_CHECKING:
    from sparsity_worker.profiles.tier_profile import TierProfile

WORKER: Final = "sparsity-worker"
"""By which traces and metrics name a worker."""


class Launched(NamedTuple):
    """An `sgl.Engine` and how it was set up.

    Attributes:
        engine: it; of a node that follows it can do nothing but end.
        ranks: the processes of this node that compute, which are ready.
        arguments: what it was made with.
        traced: whether it sends spans.
        version: SGLang's.
    """

    engine: Any
    ranks: Sequence[BaseProcess]
    arguments: Mapping[str, Any]
    traced: bool
    version: str


def launch(config: WorkerConfig, facts: ModelFacts, profiles: Mapping[str, TierProfile]) -> Launched:
    """Starts the ranks of this node, and waits until they and those of the other nodes are ready.

    In the main thread: SGLang installs signal handlers and starts its scheduler processes. Traces and metrics begin
    here, before SGLang would install a tracer provider of its own in this process, and after the last fork of it.

    Args:
        config: the worker's options.
        facts: its model.
        profiles: of the sparse tiers.

    Raises:
        ConfigurationError: when traces or metrics cannot be sent as they are to.
    """
    nodes, forks = config.nodes.count, can_fork(config.device)
    if forks:
        remember_title()
    prepare_environment(config.device, config.threads, config.tensor_parallel, config.state_folder, nodes)
    from sparsity_worker.tune.ahead import compiled_ahead

    arguments, traced = engine_arguments(config, facts, profiles), _tracing()
    observe = partial(telemetry.configure, WORKER, config.metrics_listen)
    if not forks:
        observe()
    with compiled_ahead(config, facts, profiles):
        forking = forking_engine(observe) if forks else None
        # It takes seconds to import.
        import sglang

        if config.device == "cpu":
            disable_other_models(config.model_path, Path(sglang.__path__[0], "srt", "models"))
        engine = (forking or sglang.Engine)(**arguments, **traced)
    # The detokenizer, where there is one, comes after them.
    own = engine.get_all_child_pids()[: config.nodes.ranks(config.tensor_parallel)]
    ranks = [process for process in multiprocessing.active_children() if process.pid in own]
    return Launched(engine, ranks, arguments, bool(traced), sglang.__version__)


def endings(ranks: Sequence[BaseProcess]) -> set[asyncio.Future[None]]:
    """What is done once a process has ended, one for each, in the running loop."""
    loop = asyncio.get_running_loop()

    def ending(rank: BaseProcess) -> asyncio.Future[None]:
        future = loop.create_future()

        def end() -> None:
            loop.remove_reader(rank.sentinel)
            future.set_result(None)

        loop.add_reader(rank.sentinel, end)
        return future

    return {ending(rank) for rank in ranks}


def engine_arguments(config: WorkerConfig, facts: ModelFacts, profiles: Mapping[str, TierProfile]) -> dict[str, Any]:
    """SGLang's `ServerArgs`; those of all nodes are the same but for `node_rank`."""
    from sparsity_worker.profiles.served_tiers import to_config
    from sparsity_worker.profiles.tier_profile import model_overrides

    # Of all profiles of an engine page and backend are the same.
    profile = next(iter(profiles.values()), None)
    return {
        "model_path": str(config.model_path),
        "device": config.device,
        "dtype": pick_dtype(config.dtype, config.device),
        "load_format": config.load_format,
        "tp_size": config.tensor_parallel,
        **config.nodes.arguments(),
        "page_size": profile.page_size if profile else 64,
        "context_length": facts.context_length,
        "max_running_requests": config.max_requests,
        "chunked_prefill_size": config.chunked_prefill_tokens,
        "json_model_override_args": json.dumps(
            model_overrides(profiles.values(), facts) | to_config(config.tiers, profiles)
        ),
        "skip_tokenizer_init": True,
        "sleep_on_idle": True,
        "incremental_streaming_output": True,
        "grammar_backend": "xgrammar",
        # As much as an indented document needs: small models would go on with it for ever.
        "constrained_json_max_whitespace_cnt": 8,
        "log_level": "warning",
        **DEVICES[config.device](config, profile.backend if profile else None),
    }


def _tracing() -> dict[str, Any]:
    collector = telemetry.traces_collector()
    if collector is None:
        return {}
    # The only variable of them all that SGLang's processes read.
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = collector.protocol
    return {"enable_trace": True, "otlp_traces_endpoint": collector.endpoint, "otlp_service_name": "sglang"}
