"""Starts the engine, proves it, and serves it until a signal."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sparsity.v1 import worker_pb2
from sparsity_rpc.channels import MAX_MESSAGE_BYTES
from sparsity_rpc.errors import ConfigurationError, EngineLostError
from sparsity_serving import telemetry
from sparsity_serving.access.access import Access
from sparsity_serving.access.lease_keys import LeaseKeys, read_keys
from sparsity_serving.access.leases import LeaseChecker
from sparsity_serving.addresses import joined, read_address, require_free
from sparsity_serving.background.jobs import JOBS
from sparsity_serving.background.reloading import ReloadedFile, Reloading
from sparsity_serving.engines import ECHO
from sparsity_serving.metrics.metering import meter_of
from sparsity_serving.server import Endpoint, listen
from tokenizers import Tokenizer

from sparsity_worker.calls.identity import Identity, ServedTier, echoed
from sparsity_worker.calls.load import Load
from sparsity_worker.calls.parsers import Parsers
from sparsity_worker.calls.requests import marker_ids
from sparsity_worker.calls.service import WorkerService
from sparsity_worker.calls.worker_metrics import WorkerMetrics
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.echo.engine import EchoEngine
from sparsity_worker.engine.launching import WORKER
from sparsity_worker.engine.sglang_engine import Engine
from sparsity_worker.joined_node import join

if TYPE_CHECKING:
    from sparsity_worker.profiles.tier_profile import TierProfile

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
_TELLING_SECONDS: Final = 5.0
log = logging.getLogger("sparsity.worker")


def run(config: WorkerConfig) -> None:
    """Runs a worker in this process, which must be on its main thread.

    Raises:
        SparsityError: when it cannot serve what it was asked to.
    """
    facts = ModelFacts.read(config.model_path, config.served_model_name)
    facts.check_ranks(config.tensor_parallel)
    config, tiers = _tiers(config, facts)
    for option, address in (("--metrics-listen", config.metrics_listen), ("--health-listen", config.health_listen)):
        if address:
            require_free(address, option, any_port=False)
    if config.nodes.follows:
        join(config, facts, _profiles(tiers))
        return
    tokenizer_file = config.model_path / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    digest = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    require_free(config.listen)
    Access.load(config.access)
    if config.require_lease and LeaseKeys.load(config.lease_key_file) is None:
        raise ConfigurationError("--require-lease: give the key with --lease-key-file or SPARSITY_LEASE_KEY")
    engine = _engine(config, facts, tokenizer, tiers)
    try:
        asyncio.run(_serve(config, facts, engine, tokenizer, digest, tiers))
    finally:
        engine.shutdown()


# An echo must start where torch is not installed, so what reads profiles and accounts is loaded for an engine only.
def _tiers(config: WorkerConfig, facts: ModelFacts) -> tuple[WorkerConfig, tuple[ServedTier, ...]]:
    if config.engine == ECHO:
        return config, echoed(config)
    from sparsity_worker.profiles.tier_profile import load_tier_profiles
    from sparsity_worker.tune.crossover import tuned
    from sparsity_worker.tune.dense import dense_tier

    profiles = load_tier_profiles(config, facts)
    config, told = dense_tier(config, facts)
    tiers = []
    for name in config.tiers:
        profile, crossover = tuned(profiles[name], config) if name in profiles else (None, told)
        tiers.append(ServedTier(name, profile.label if profile else name, profile, crossover=crossover))
    return config, tuple(tiers)


def _engine(
    config: WorkerConfig, facts: ModelFacts, tokenizer: Tokenizer, tiers: tuple[ServedTier, ...]
) -> Engine | EchoEngine:
    if config.engine == ECHO:
        telemetry.configure(WORKER, config.metrics_listen)
        return EchoEngine(tokenizer)
    return Engine(config, facts, _profiles(tiers))


async def _proved(
    engine: Engine | EchoEngine, facts: ModelFacts, tiers: tuple[ServedTier, ...]
) -> tuple[ServedTier, ...]:
    if isinstance(engine, EchoEngine):
        return tiers
    from sparsity_worker.engine.proof import probe

    # One after another: each is to show what its own request attends.
    return tuple([replace(each, proof=await probe(engine, facts, each.name, _profiles(tiers))) for each in tiers])


def _profiles(tiers: tuple[ServedTier, ...]) -> dict[str, TierProfile]:
    return {each.name: each.profile for each in tiers if each.profile is not None}


def _reloading(config: WorkerConfig, access: Access, keys: LeaseKeys | None) -> Reloading:
    """The files that may change while the worker runs."""
    files: list[ReloadedFile[Any]] = []
    if config.access:
        files.append(ReloadedFile("--access", config.access, access.read, access.adopt))
    if config.lease_key_file and keys:
        files.append(ReloadedFile("--lease-key-file", config.lease_key_file, read_keys, keys.adopt))
    reloading = Reloading(*files)
    reloading.observe(meter_of("sparsity.worker"))
    return reloading


async def _serve(
    config: WorkerConfig,
    facts: ModelFacts,
    engine: Engine | EchoEngine,
    tokenizer: Tokenizer,
    digest: str,
    tiers: tuple[ServedTier, ...],
) -> None:
    load = Load(config.max_requests)
    markers = marker_ids(tokenizer, config.reasoning_markers)
    identity = Identity(config, facts, await _proved(engine, facts, tiers), digest, markers)
    worker_metrics = WorkerMetrics(config, facts, load, engine.kv_tokens)
    access, keys = Access.load(config.access), LeaseKeys.load(config.lease_key_file)
    leases = LeaseChecker(keys, config.worker_id, [each.tier for each in identity.tiers]) if keys else None
    parsers = None if config.engine == ECHO else Parsers.of(config, tokenizer)
    service = WorkerService(engine, tokenizer, identity, load, leases, worker_metrics, access, parsers)
    endpoint = listen(config.listen, {SERVICE: service}, MAX_MESSAGE_BYTES, config.tls)
    # SGLang took the signals at the probe; a drain must come before its shutdown.
    stop, failed = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if isinstance(engine, Engine):
        # By which its processes tell that they fail; SGLang's own handler would end this one without a word.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, failed.set)
    reloading = _reloading(config, access, keys)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloading.hurry)
    JOBS.observe(meter_of("sparsity.worker"))
    jobs = {"options files": reloading.run, "token keys": access.follow_keys}
    following = [asyncio.create_task(JOBS.keep(name, job)) for name, job in jobs.items()]
    await endpoint.server.start()
    await endpoint.health.serve(config.health_listen)
    await endpoint.health.tell(True)
    log.info(
        "worker %s serves %s on %s: %s, backend %s, %s",
        config.worker_id,
        ", ".join(config.tiers),
        joined(read_address(config.listen, "--listen").host, endpoint.port),
        facts.name,
        engine.backend,
        ", ".join(f"probe density {each.proof.density:.3f} by {each.label}" for each in identity.tiers if each.proof)
        or engine.unreported,
    )
    ends = [asyncio.create_task(event.wait()) for event in (stop, failed)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in (*following, ends[0]):
        task.cancel()
    if isinstance(engine, Engine) and failed.is_set():
        await _fail(config, engine, endpoint, load)
    await endpoint.health.drain()
    load.drain()
    idle = asyncio.create_task(load.idle(config.drain_seconds))
    await asyncio.wait([idle, ends[1]], return_when=asyncio.FIRST_COMPLETED)
    if isinstance(engine, Engine) and failed.is_set():
        await _fail(config, engine, endpoint, load)
    ends[1].cancel()
    await endpoint.server.stop(2.0)
    await engine.release()
    await endpoint.health.stop()
    telemetry.shutdown()


async def _fail(config: WorkerConfig, engine: Engine, endpoint: Endpoint, load: Load) -> NoReturn:
    """Tells probes and every caller that the engine has failed.

    Raises:
        EngineLostError: always; the process is to end, since what is left of the engine can answer nobody.
    """
    load.drain()
    endpoint.health.alive(False)
    engine.lose()
    await endpoint.health.drain()
    await load.idle(_TELLING_SECONDS)
    await endpoint.server.stop(_TELLING_SECONDS)
    await endpoint.health.stop()
    telemetry.shutdown()
    raise EngineLostError(f"worker {config.worker_id}: a process of its engine failed; the log above says why")
