"""Starts the router and serves it until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import uvloop
from sparsity.v1 import fleet_pb2, inference_pb2, policy_pb2
from sparsity_policies.documents.confined import EDITS, SOURCES, NoProcessError
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.storage.folder import PolicyFolder
from sparsity_policies.storage.redis_url import without_credentials
from sparsity_policies.storage.store import PolicyStore
from sparsity_policies.threads import BUILDS, DRAFTS, EXPLANATIONS, REPLAYS
from sparsity_rpc.errors import ConfigurationError, StoreError
from sparsity_serving import telemetry
from sparsity_serving.access.access import Access
from sparsity_serving.access.lease_keys import LeaseKeys, read_keys
from sparsity_serving.addresses import joined, read_address
from sparsity_serving.background.ending import end_tasks
from sparsity_serving.background.jobs import JOBS
from sparsity_serving.background.reloading import ReloadedFile, Reloading
from sparsity_serving.engines import ECHO
from sparsity_serving.metrics.metering import meter_of
from sparsity_serving.server import listen
from sparsity_serving.watchdog import Watchdog, signals

from sparsity_router.callers.admission import Callers
from sparsity_router.callers.fields import most_of_a_call
from sparsity_router.callers.limits import TenantLimits, read_rates
from sparsity_router.config import RouterConfig
from sparsity_router.decisions.sessions import Sessions
from sparsity_router.fleet.replicas import Replicas
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.guards import GuardMonitor
from sparsity_router.following.rollouts import keep_moving
from sparsity_router.following.seeding import keep_seeding, seed
from sparsity_router.following.siblings import Siblings
from sparsity_router.following.snapshot_file import SnapshotFile
from sparsity_router.fronting import open_models
from sparsity_router.gateway.app import Gateway
from sparsity_router.gateway.door import Door
from sparsity_router.observing.fleet_metrics import observe_fleets
from sparsity_router.observing.observer import Observer
from sparsity_router.observing.policy_metrics import observe_disk, observe_loop, observe_policies
from sparsity_router.observing.recorder import Recorder
from sparsity_router.observing.request_metrics import RequestMetrics
from sparsity_router.processes.early_signals import EARLY
from sparsity_router.prompts.opinion.asking import SecondOpinion
from sparsity_router.prompts.semantic import Detector
from sparsity_router.readiness import Readiness
from sparsity_router.relaying.shadow import Shadow
from sparsity_router.relaying.turns import follow_policies
from sparsity_router.services.fleet import FleetService
from sparsity_router.services.inference import InferenceService
from sparsity_router.services.policy.service import policy_service
from sparsity_router.services.policy.state import PolicyState

log = logging.getLogger("sparsity.router")
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"]
POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]


def run(config: RouterConfig) -> None:
    """Runs a router in this process.

    Raises:
        SparsityError: when it cannot serve.
    """
    telemetry.configure("sparsity-router", config.metrics_listen)
    try:
        uvloop.run(serve(config))
    finally:
        # The interpreter waits for these threads, and they for those processes.
        for work in (SOURCES, EDITS, BUILDS, DRAFTS, REPLAYS, EXPLANATIONS):
            work.shut()
    telemetry.shutdown()


async def serve(config: RouterConfig, started: asyncio.Future[int] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; ``started`` gets the port."""
    with contextlib.ExitStack() as held:
        await _serve(config, started, held)


async def _serve(config: RouterConfig, started: asyncio.Future[int] | None, held: contextlib.ExitStack) -> None:
    access = Access.load(config.access)
    lease_keys = LeaseKeys.load(config.lease_key_file)
    store = None
    if config.redis_url:
        store = PolicyStore(config.redis_url, wait_replicas=config.redis_wait_replicas, check=SOURCES.check)
    decisions = DecisionLog(store.redis) if store else None
    policies, seeded = await _load(config, store)
    recorder = Recorder(decisions, config.decision_sample, config.decision_rate)
    observe_policies(policies, recorder)
    observe_disk(policies)
    guards = GuardMonitor(policies, store)
    if config.engine == ECHO:
        log.warning("--engine echo: no model answers; workers repeat prompts and attend nothing")
    detector = Detector(config.detect_model, config.detect_seconds) if config.detect != "off" else None
    second = SecondOpinion(config.opinion_seconds) if config.opinion_seconds else None
    models = open_models(config, lease_keys, detector, second)
    kept = config.sessions == "keep"
    sessions = Sessions(store.redis if store else None, config.policy_ttl) if kept else None
    fleets, shapes = models.fleets, models.shapes
    metrics = RequestMetrics(shapes, gpu=config.gpu)
    observer = Observer(policies, recorder, guards, metrics, logged=config.request_log)
    observe_fleets(fleets)
    state = PolicyState(policies, store, decisions, recorder, access, models, config.policy_dir)
    limits = TenantLimits.load(config.tenant_limits, config.redis_url)
    callers = Callers(access, limits, config.max_prompt_bytes, config.default_new_tokens)
    for fleet in fleets.values():
        fleet.direct.settle = callers.ended
    shadow = Shadow(policies, decisions)
    inference = InferenceService(models, policies, observer, decisions, lease_keys, sessions, callers, shadow)
    reloading = _reloading(config, access, limits, lease_keys)
    replicas = Replicas(policies, store.redis if store else None, reloading.problems)
    services = {
        FLEET: FleetService(fleets, replicas, access),
        INFERENCE: inference,
        POLICY: policy_service(state),
    }
    most, shared = most_of_a_call(config.max_prompt_bytes), config.siblings is not None
    endpoint = listen(
        config.listen, services, most, config.tls, shared=shared, connection_seconds=config.connection_seconds
    )
    door: Door | None = None
    if config.http_listen:
        app = Gateway(inference, callers, models, config.max_prompt_bytes, endpoint.health)
        door = Door(
            app,
            config.http_listen,
            config.tls,
            shared=shared,
            drain_seconds=config.drain_seconds,
            connection_seconds=config.connection_seconds,
        )
        held.callback(door.close)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    watchdog = Watchdog(endpoint.health.alive)
    held.callback(watchdog.stop)
    observe_loop(watchdog)
    JOBS.observe(meter_of("sparsity.router"))

    def end() -> None:
        watchdog.must_end()
        loop.call_soon_threadsafe(stop.set)

    def at_once(switch: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            try:
                switch()
            finally:
                # What was interrupted may publish what it had read before.
                loop.call_soon_threadsafe(policies.overrides.publish)

        return act

    kill, unkill = at_once(policies.overrides.kill), at_once(policies.overrides.unkill)
    handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGUSR1: kill, signal.SIGUSR2: unkill}
    handlers[signal.SIGHUP] = reloading.hurry
    held.enter_context(signals(handlers))
    work: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "policies": policies.follow,
        "decision log": recorder.run,
        "shadow": shadow.run,
        "token keys": access.follow_keys,
        "options files": reloading.run,
        "queues": partial(follow_policies, fleets.values(), policies),
    }
    work |= {f"workers of {name}" if name else "workers": fleet.watch for name, fleet in fleets.items()}
    if detector is not None:
        work["detector"] = partial(detector.run, policies)
    if second is not None:
        work["second opinion"] = second.run
    if config.siblings is not None:
        siblings = Siblings(config.siblings, policies.overrides)
        siblings.look()
        work["siblings"] = siblings.run
    EARLY.hand_over(handlers)
    if store is not None:
        work["replicas"] = replicas.run
    if sessions is not None and store is not None:
        work["sessions"] = sessions.run
    if store is not None and decisions is not None:
        work["overrides"] = partial(policies.overrides.deliver, store)
        work["outcomes"] = partial(guards.follow_outcomes, decisions)
        if not seeded and (band_set := _seeded(config)):
            work["seeding"] = partial(keep_seeding, store, band_set)
        if config.policy_dir is None:
            work["rollouts"] = partial(keep_moving, policies, store)
    await endpoint.server.start()
    await endpoint.health.serve(config.health_listen)
    readiness = Readiness(policies, fleets, config.max_policy_lag, config.worker_timeout)
    work["readiness"] = partial(readiness.tell, endpoint.health)
    background = [asyncio.create_task(JOBS.keep(name, job)) for name, job in work.items()]
    if door is not None:
        # Nobody comes in by a door that fell shut: such a router ends, and is started again.
        background.append(asyncio.create_task(door.serve()))
    replicas.address = joined(read_address(config.listen, "--listen").host, endpoint.port)
    snapshot = policies.snapshot
    log.info("router on %s, policy revision %d (%s)", replicas.address, snapshot.revision, snapshot.content_hash)
    if door is not None:
        log.info("OpenAI's endpoints on http%s://%s/v1", "s" if config.tls else "", door.address)
    if started is not None:
        started.set_result(endpoint.port)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([waiting, *background], return_when=asyncio.FIRST_COMPLETED)
    log.info("draining for up to %.0f s", config.drain_seconds)
    await endpoint.health.drain()
    await asyncio.gather(endpoint.server.stop(config.drain_seconds), *([door.stop()] if door else []))
    await endpoint.health.stop()
    results = await end_tasks((waiting, *background))
    await policies.saving.last()
    with contextlib.suppress(StoreError):
        await recorder.flush()
    if sessions is not None:
        await sessions.flush()
    for fleet in fleets.values():
        await fleet.close()
    if limits is not None:
        await limits.close()
    if store is not None:
        await store.close()
    for result in results:
        if isinstance(result, Exception):
            raise result


def _reloading(config: RouterConfig, access: Access, limits: TenantLimits | None, keys: LeaseKeys | None) -> Reloading:
    """The files that may change while the router runs."""
    files: list[ReloadedFile[Any]] = []
    if config.access:
        files.append(ReloadedFile("--access", config.access, access.read, access.adopt))
    if config.tenant_limits and limits:
        files.append(ReloadedFile("--tenant-limits", config.tenant_limits, read_rates, limits.adopt))
    if config.lease_key_file and keys:
        files.append(ReloadedFile("--lease-key-file", config.lease_key_file, read_keys, keys.adopt))
    reloading = Reloading(*files)
    reloading.observe(meter_of("sparsity.router"))
    return reloading


async def _load(config: RouterConfig, store: PolicyStore | None) -> tuple[PolicyFollower, bool]:
    """The follower with its first snapshot, and whether the store took the shipped policies."""
    source = PolicyFolder(config.policy_dir, store, SOURCES.load) if config.policy_dir else store
    assert source is not None, "the configuration has a store or a folder"
    disk = SnapshotFile(config.snapshot_file, SOURCES.check) if config.snapshot_file else None
    policies = PolicyFollower(source, config.policy_ttl, disk, config.model_bands())
    seeded = False
    try:
        with contextlib.suppress(StoreError):
            if store is not None and (band_set := _seeded(config)):
                await seed(store, band_set)
            seeded = True
        await policies.start()
    except StoreError as error:
        raise ConfigurationError(f"--redis-url: {without_credentials(config.redis_url or '')}: {error}") from error
    except NoProcessError as error:
        raise ConfigurationError(f"policies cannot be compiled: the work {error}") from error
    return policies, seeded


def _seeded(config: RouterConfig) -> str | None:
    """Whose policies a store begins with; a folder is never written to."""
    return None if config.policy_dir else config.band_set
