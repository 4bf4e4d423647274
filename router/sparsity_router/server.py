"""Starts the router and serves it until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal

import uvloop
from grpc_health.v1 import health_pb2
from sparsity import telemetry
from sparsity.channels import MAX_MESSAGE_BYTES
from sparsity.errors import ConfigurationError, StoreError
from sparsity.serving import listen
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies.shipped import shipped_policies
from sparsity_policies.store import PolicyStore

from sparsity_router.classify import Classifier
from sparsity_router.config import RouterConfig
from sparsity_router.fleet import Fleet
from sparsity_router.policies import PolicyFollower
from sparsity_router.services.inference import InferenceService
from sparsity_router.services.policy import PolicyService
from sparsity_router.tokens import ModelTokenizer

log = logging.getLogger("sparsity.router")
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]


def run(config: RouterConfig) -> None:
    """Runs a router in this process.

    Raises:
        SparsityError: when it cannot serve.
    """
    telemetry.configure("sparsity-router")
    uvloop.run(serve(config))
    telemetry.shutdown()


async def serve(config: RouterConfig, started: asyncio.Future[int] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; ``started`` gets the port."""
    tokenizer = ModelTokenizer(config.model_path)
    store = PolicyStore(config.redis_url)
    policies = PolicyFollower(store, config.policy_ttl)
    try:
        if config.band_set:
            added = await store.seed(shipped_policies(config.band_set))
            log.info("policies: %d shipped ones added", len(added))
        await policies.start()
    except StoreError as error:
        problem = (
            f"--redis-url: {config.redis_url}: {error}; start the server, or run `sparsity up` for an embedded one"
        )
        raise ConfigurationError(problem) from error
    fleet = Fleet(config.workers, tokenizer.digest, config.worker_timeout)
    classifier = Classifier(tokenizer, config.max_prompt_bytes)
    services = {
        INFERENCE: InferenceService(classifier, policies, fleet, tokenizer.name),
        POLICY: PolicyService(policies, store),
    }
    endpoint = listen(config.listen, services, MAX_MESSAGE_BYTES)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, policies.kill)
    loop.add_signal_handler(signal.SIGUSR2, policies.unkill)
    background = [asyncio.create_task(policies.follow()), asyncio.create_task(fleet.watch())]
    await endpoint.server.start()
    for name in (INFERENCE.full_name, POLICY.full_name, ""):
        await endpoint.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    host = config.listen.rsplit(":", 1)[0]
    snapshot = policies.snapshot
    log.info("router on %s:%d, policy revision %d (%s)", host, endpoint.port, snapshot.revision, snapshot.content_hash)
    if started is not None:
        started.set_result(endpoint.port)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([waiting, *background], return_when=asyncio.FIRST_COMPLETED)
    log.info("draining for up to %.0f s", config.drain_seconds)
    await endpoint.health.enter_graceful_shutdown()
    await endpoint.server.stop(config.drain_seconds)
    for task in (waiting, *background):
        task.cancel()
    results = await asyncio.gather(waiting, *background, return_exceptions=True)
    await fleet.close()
    await store.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
