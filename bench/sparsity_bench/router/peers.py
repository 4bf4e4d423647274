"""Other routers, installed from their packages and measured beside ours: the same prompts, over their own protocol.

They take OpenAI-style HTTP, so their direct baseline is the same HTTP server without a router in between.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsity_router.embedded.child import Child
from sparsity_router.embedded.folders import cache_folder
from sparsity_router.prompts.corpus import excerpt
from sparsity_serving.benchmark import Row

from sparsity_bench import processes, timing
from sparsity_bench.router import paths
from sparsity_bench.router.http_calls import http_caller

MODEL = "mock"
_INSTALL_SECONDS = 600.0
_START_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A router of somebody else.

    Attributes:
        name: of its package, and of its program.
        version: of its package.
        extra: of its package, in brackets.
        options: of its program, with places for the port, the backend's port and a free one.
        config: its configuration file, likewise; where it has one, `{config}` is its path.
        environment: variables.
    """

    name: str
    version: str
    options: str
    extra: str = ""
    config: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    @property
    def folder(self) -> Path:
        """Its environment, which benchmarks share."""
        return cache_folder() / "peers" / f"{self.name}-{self.version}"

    @property
    def program(self) -> Path:
        """What is started."""
        return self.folder / "bin" / self.name


_HTTP = "--host 127.0.0.1 --port {port} --worker-urls http://127.0.0.1:{backend} --prometheus-port {free}"
PEERS = (
    Peer("vllm-router", "0.1.17", f"{_HTTP} --policy round_robin --log-level error"),
    Peer("smg", "1.13.0", f"launch {_HTTP} --policy round_robin --backend sglang --log-level error"),
    Peer(
        "litellm",
        "1.106.0",
        "--config {config} --host 127.0.0.1 --port {port}",
        "[proxy]",
        "model_list: [{{model_name: mock, litellm_params: "
        "{{model: openai/mock, api_base: 'http://127.0.0.1:{backend}/v1', api_key: none}}}}]\n",
        {
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "true",
            "LITELLM_LOG": "ERROR",
        },
    ),
)


@dataclass(slots=True)
class HttpChild(Child):
    """A process that serves OpenAI-style HTTP on ``address``."""

    program: str = sys.executable

    def command(self) -> list[str]:
        """What is started."""
        return [self.program, *self.arguments]

    def is_ready(self) -> bool:
        """Whether it answers a chat completion."""
        body = b'{"model": "mock", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}'
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}/v1/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=2.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def install(peer: Peer, say: Callable[[str], None]) -> bool:
    """Installs the peer's package once; False when the registry does not have it."""
    if peer.program.exists():
        return True
    say(f"installing {peer.title} into {peer.folder} ...")
    pip = [
        str(peer.folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        f"{peer.name}{peer.extra}=={peer.version}",
    ]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(peer.folder)], check=True, capture_output=True)
        subprocess.run(pip, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        told = getattr(error, "stderr", b"") or b""
        say(f"{peer.title} cannot be installed and is left out: {told.decode()[-300:] or error}")
        return False
    return peer.program.exists()


async def measure(
    own: Mapping[str, timing.Path],
    shape: str,
    folder: Path,
    count: int,
    say: Callable[[str], None],
    peers: Sequence[Peer] = PEERS,
) -> list[Row]:
    """Our relay, by each of its doors, beside each peer that can be installed.

    Args:
        own: what our doors cost, by their names.
        shape: of the prompt.
        folder: for logs.
        count: calls of each kind.
        say: gets a line at every step.
        peers: that are measured.

    Raises:
        EngineError: when a peer gives anything but the whole answer.
    """
    rows = []
    for peer in peers:
        if not await asyncio.to_thread(install, peer, say):
            continue
        say(f"{peer.title} ...")
        port, backend, free = (processes.free_address().rpartition(":")[2] for _ in range(3))
        config = folder / f"{peer.name}.yaml"
        places = {"port": port, "backend": backend, "free": free, "config": config}
        config.write_text(peer.config.format(**places))
        arguments = ["-m", "sparsity_bench.router.http_backend", "--port", backend]
        origin = HttpChild("http-backend", arguments, f"127.0.0.1:{backend}", folder / "backend.log")
        between = HttpChild(
            *(peer.name, peer.options.format(**places).split(), f"127.0.0.1:{port}", folder / f"{peer.name}.log"),
            environment=peer.environment,
            program=str(peer.program),
        )
        async with asyncio.timeout(_START_SECONDS + count), processes.running(origin, between):
            path = await _path(origin, between, count)
            for door, ours in own.items():
                rows += beside(door, ours, path, peer.title, shape)
    return rows


def beside(door: str, own: timing.Path, peer: timing.Path, title: str, shape: str) -> list[Row]:
    """Rows of our figures with the peer's as the baseline."""
    figures = (
        (f"{door} adds, p50", shape, "added"),
        (f"{door}, CPU a request", shape, "cpu"),
        (f"stream {door}, CPU a message", f"{shape}, {paths.STREAM_MESSAGES} messages", "chunk"),
        (f"{door}, CPU a request", f"{paths.LARGE_BYTES} bytes of text", "large"),
    )
    rows = []
    for name, what, figure in figures:
        ours, theirs = getattr(own, figure), getattr(peer, figure)
        rows.append(Row(f"{name}, beside {title}", what, ours, "us", title, theirs, theirs / ours))
    return rows


async def _path(origin: HttpChild, between: HttpChild, count: int) -> timing.Path:
    async with http_caller("/v1/chat/completions", MODEL, {}) as caller:

        async def call(child: HttpChild, messages: int, text: str) -> None:
            prompt = {"messages": [{"role": "user", "content": text}]}
            paths.check(messages, await caller.pieces(child.address, prompt, messages))

        short, large, many = excerpt(paths.PROMPT_BYTES), excerpt(paths.LARGE_BYTES), paths.STREAM_MESSAGES
        clock, few = timing.cpu_clock(between.pid), max(count // 4, 10)
        direct = await timing.one_at_a_time(lambda: call(origin, 1, short), count, clock)
        relayed = await timing.one_at_a_time(lambda: call(between, 1, short), count, clock)
        stream = await timing.one_at_a_time(lambda: call(between, many, short), few, clock)
        whole = await timing.one_at_a_time(lambda: call(between, 1, large), few, clock)
    return timing.Path.of(direct, relayed, stream, many, whole)
