"""Starts the embedded service, keeps it running, and ends it."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sparsity_policies.storage.redis_url import ENVIRONMENT, without_credentials
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import DENSE, TIERS
from sparsity_serving.addresses import free_port, require_free
from sparsity_serving.background.signalled import SignalledEvent
from sparsity_serving.engines import ECHO, ENGINES, SGLANG
from sparsity_serving.otlp import GRPC
from sparsity_serving.telemetry import sends_traces

from sparsity_router.embedded.child import Child
from sparsity_router.embedded.default_model import default_model, echo_model
from sparsity_router.embedded.profiles import profiles_by_tier
from sparsity_router.embedded.restarts import PROGRESS_SECONDS, Restarts
from sparsity_router.embedded.state import Process, Running
from sparsity_router.embedded.store import EmbeddedStore
from sparsity_router.embedded.tour import tour
from sparsity_router.embedded.traces import FILE_NAME, TraceReceiver

_READY_TIMEOUT = 600.0
_DRAIN_SECONDS = 10.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UpConfig:
    """Options of `sparsity up`.

    Attributes:
        state: folder of logs, policies and the note of what runs.
        listen: the router's address.
        model: model folder; None fetches the default model.
        redis_url: external policy store; None starts an embedded Valkey.
        band_set: shipped policies to seed; None leaves the router's own choice.
        policy_ttl: seconds until policies are stale; None leaves the router's own.
        profiles: of the sparse tiers, by name or .yaml path; those without one get a shipped one.
        access: file of who may call what; None lets everybody call all.
        http: address of OpenAI's HTTP endpoints; empty serves none.
        metrics_port: of the router's /metrics, with the workers' after it; 0 serves none.
        traces: whether traces are kept in the state folder, unless the environment sends them elsewhere.
        engine: of the workers: `sglang`, or `echo`, which needs no model.
        tour: whether a few commands show the service once it is ready.
        pools: whether each tier has a worker of its own, in the place of one that serves all.
    """

    state: Path
    listen: str
    model: Path | None = None
    redis_url: str | None = field(default=None, repr=False)
    band_set: str | None = None
    policy_ttl: float | None = None
    profiles: tuple[str, ...] = ()
    access: Path | None = None
    http: str = ""
    metrics_port: int = 0
    traces: bool = True
    engine: str = SGLANG
    tour: bool = False
    pools: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigurationError(f"--engine: must be one of {', '.join(ENGINES)}, not {self.engine!r}")

    @property
    def workers(self) -> dict[str, tuple[str, ...]]:
        """The tiers of each worker, by its id."""
        name = "echo" if self.engine == ECHO else "worker"
        return {f"{name}-{tier}": (tier,) for tier in TIERS} if self.pools else {f"{name}-shared": TIERS}


class Supervisor:
    """The embedded service; ``say`` gets a line at every step."""

    def __init__(self, config: UpConfig, say: Say) -> None:
        self._config = config
        self._say = say
        self._stop = SignalledEvent()
        self._store: EmbeddedStore | None = None
        self._workers: dict[str, Child] = {}
        self._router: Child | None = None
        self._traces: TraceReceiver | None = None
        self._started = time.monotonic()

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM.

        Raises:
            ConfigurationError: when a part cannot be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())
        config = self._config
        require_free(config.listen)
        (config.state / "logs").mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._serve(config)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the state folder: two services on one Valkey data folder would destroy it."""
        with open(self._config.state / "up.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                folder = self._config.state
                problem = f"--state: another `sparsity up` uses {folder}; end it, or give this one another folder"
                raise ConfigurationError(problem) from error
            yield

    def _serve(self, config: UpConfig) -> None:
        for place in range(len(config.workers) + 1 if config.metrics_port else 0):
            require_free(self._metrics(place), "--metrics-port", any_port=False)
        if config.http:
            require_free(config.http, "--http", any_port=False)
        model = config.model or self._make_model()
        try:
            if config.redis_url is None:
                self._store = EmbeddedStore(config.state / "valkey", self._say)
            url = self._store.url if self._store else str(config.redis_url)
            if config.traces and not sends_traces():
                self._traces = TraceReceiver(config.state / FILE_NAME)
            self._start_children(model, url)
            self._await_ready()
            if self._stop.is_set():
                return
            ready = time.monotonic() - self._started
            self._note(model, url, ready)
            if config.http:
                self._say(f"OpenAI's clients: base_url http://{config.http}/v1, model {model.name}, any key")
            if config.engine == ECHO:
                self._say("echo workers: no model runs, answers repeat the prompt, and nothing is attended or measured")
            self._say(f"ready after {ready:.0f} s: router on {config.listen}; try `sparsity demo`; Ctrl-C ends it")
            if config.tour:
                tour(config.listen, config.state, self._say, self._stop.is_set)
                self._say(f"router on {config.listen}; Ctrl-C ends it")
            self._supervise(model, url, ready)
        finally:
            self._end()

    def _make_model(self) -> Path:
        if self._config.engine == ECHO:
            return echo_model(self._config.state, self._say)
        return default_model(self._say)

    def _start_children(self, model: Path, url: str) -> None:
        logs, key = self._config.state / "logs", self._lease_key()
        profiles = profiles_by_tier(self._config.profiles, other_model=self._config.model is not None)
        engine = self._config.engine
        for place, (name, tiers) in enumerate(self._config.workers.items(), 1):
            address = f"127.0.0.1:{free_port()}"
            arguments = ["-m", "sparsity_worker", "--worker-id", name, "--tiers", ",".join(tiers), "--engine", engine]
            arguments += ["--model", str(model), "--listen", address, "--lease-key-file", str(key)]
            for tier in tiers:
                if tier != DENSE and engine != ECHO:
                    arguments += ["--profile", profiles[tier]]
            arguments += self._metrics_arguments(place)
            self._workers[name] = Child(name, arguments, address, logs / f"{name}.log")
        arguments = ["-m", "sparsity_router", "--model", str(model), "--engine", engine]
        arguments += ["--listen", self._config.listen, "--lease-key-file", str(key)]
        arguments += ["--snapshot-file", str(self._config.state / "policies.json")]
        handed = {
            "--band-set": self._config.band_set,
            "--policy-ttl": self._config.policy_ttl,
            "--access": self._config.access,
            "--http-listen": self._config.http or None,
        }
        arguments += [word for option, value in handed.items() if value is not None for word in (option, str(value))]
        arguments += self._metrics_arguments(0)
        for child in self._workers.values():
            arguments += ["--worker", child.address]
        # Passwords stay out of the process list, and what the URL has already is not added to it again.
        store = dict.fromkeys(ENVIRONMENT.values(), "") | {"SPARSITY_REDIS_URL": url}
        self._router = Child("router", arguments, self._config.listen, logs / "router.log", store)
        for child in (*self._workers.values(), self._router):
            if self._traces:
                child.environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"http://127.0.0.1:{self._traces.port}"
                child.environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = GRPC
            child.log.write_bytes(b"")
            child.start()
            self._say(f"{child.name} starts, pid {child.pid}, log {child.log}")

    def _metrics(self, place: int) -> str:
        return f"127.0.0.1:{self._config.metrics_port + place}"

    def _metrics_arguments(self, place: int) -> list[str]:
        return ["--metrics-listen", self._metrics(place)] if self._config.metrics_port else []

    def _lease_key(self) -> Path:
        """The file with the key that router and workers share."""
        path = self._config.state / "lease.key"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32))
        return path

    def _children(self) -> list[Child]:
        return [*self._workers.values(), *([self._router] if self._router else [])]

    def _await_ready(self) -> None:
        waiting = {child.name: child for child in self._children()}
        said = self._started
        while waiting and not self._stop.is_set():
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                self._say(f"{said - self._started:.0f} s: {', '.join(waiting)} loading")
            for name, child in list(waiting.items()):
                child.check_alive()
                if child.is_ready():
                    del waiting[name]
                    self._say(f"{name} serves on {child.address} after {time.monotonic() - self._started:.0f} s")
            if time.monotonic() - self._started > _READY_TIMEOUT:
                raise ConfigurationError(f"{', '.join(waiting)} did not get ready within {_READY_TIMEOUT:.0f} s")
            self._stop.wait(0.25)
        # The router hears of a worker a moment after the worker serves.
        self._stop.wait(1.0)

    def _note(self, model: Path, url: str, ready: float) -> None:
        workers: dict[str, Process] = {}
        for name, child in self._workers.items():
            process = Process(child.name, child.pid, child.address, str(child.log))
            workers |= dict.fromkeys(self._config.workers[name], process)
        store = without_credentials(url)
        running = Running(os.getpid(), self._config.listen, store, str(model), workers, ready, self._config.engine)
        running.write(self._config.state)

    def _supervise(self, model: Path, url: str, ready: float) -> None:
        restarts = Restarts(self._say)
        while not self._stop.wait(0.5):
            if self._store:
                self._store.look()
            for child in self._children():
                if restarts.look(child):
                    self._note(model, url, ready)

    def _end(self) -> None:
        self._say("stopping")
        (self._config.state / "up.json").unlink(missing_ok=True)
        # The router first: it lets what is in flight end on the workers.
        self._drain([self._router] if self._router else [])
        self._drain(list(self._workers.values()))
        if self._traces:
            self._traces.stop()
        if self._store:
            self._store.stop()

    def _drain(self, children: list[Child]) -> None:
        enders = {child.name: threading.Thread(target=child.stop, args=(_DRAIN_SECONDS,)) for child in children}
        for ender in enders.values():
            ender.start()
        said = time.monotonic()
        while left := [name for name, ender in enders.items() if ender.is_alive()]:
            enders[left[0]].join(0.1)
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                self._say(f"{', '.join(left)} still draining")
