"""A whole router over two models of different tokenizers, in the test's process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_router.config import RouterConfig
from support.ports import free_port
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, MODERATE
from support.routers.router import Router, running
from support.tiny import tiny_model, wordy_model
from support.workers.fake_worker import FakeWorker

TIERS = (DENSE, MODERATE, AGGRESSIVE)
POLICIES: Sequence[dict[str, Any]] = (
    {"domain": "low", "risk": "low", "bands": BANDS},
    {"domain": "high", "risk": "high", "bands": BANDS[:1]},
)
# 119 tokens of `tiny`, a byte each, and 60 words of `wordy`.
WORDS = " ".join(["y"] * 60)


@dataclass
class TwoModels:
    """The router; `tiny` is its first model, and its second, `wordy`, is also called `words`."""

    router: Router
    tiny: FakeWorker
    wordy: FakeWorker
    url: str
    session: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=20.0, trust_env=False))

    async def tier(self, model: str = "", prompt: str = WORDS, domain: str = "low", **context: Any) -> int:
        """The tier that a request is answered at."""
        asked, tier = make_request(prompt, domain=domain, **context), 0
        asked.model = model
        async for message in self.router.inference.Generate(asked):
            if message.HasField("completion"):
                tier = message.completion.decision.tier
        return tier

    async def explained(self, model: str) -> Any:
        asked = make_request(WORDS, domain="low")
        asked.model = model
        return await self.router.inference.Explain(inference_pb2.ExplainRequest(request=asked))

    async def complete(self, model: str, prompt: str = WORDS) -> httpx.Response:
        body = {"model": model, "prompt": prompt, "metadata": {"domain": "low"}}
        return await self.session.post(f"{self.url}/v1/completions", json=body)


def written(folder: Path, **models: dict[str, Any]) -> Path:
    """The file of `--models`."""
    path = folder / "models.yaml"
    path.write_text(json.dumps({"models": [{"name": name, **entry} for name, entry in models.items()]}))
    return path


@asynccontextmanager
async def two_models(
    folder: Path, *, policies: Sequence[dict[str, Any]] = POLICIES, worker: dict[str, Any] | None = None,
    bands: dict[str, Any] | None = None, banded: str = "wordy", ready: bool = True, chats: bool = False, **options: Any,
) -> AsyncIterator[TwoModels]:  # fmt: skip
    """Serves until the end of the block; `worker` is of both workers, `bands` are of `banded`, `chats` of `wordy`."""
    (folder / "policies").mkdir(parents=True)
    for policy in policies:
        (folder / "policies" / f"{policy['domain']}.yaml").write_text(json.dumps(policy))
    common: dict[str, Any] = {"tiers": TIERS, **(worker or {})}
    tiny = FakeWorker("t", DENSE, tiny_model(folder / "tiny"), **common)
    wordy = FakeWorker("w", DENSE, wordy_model(folder / "wordy"), **common)
    if chats:
        (folder / "wordy" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    port = free_port()
    async with AsyncExitStack() as held:
        for one in (tiny, wordy):
            await one.start()
            held.push_async_callback(one.stop)
        own = {banded: {"bands": bands}} if bands else {}
        file = written(
            folder,
            tiny={"folder": "tiny", "workers": [tiny.address], **own.get("tiny", {})},
            wordy={"folder": "wordy", "workers": [wordy.address], "aliases": ["words"], **own.get("wordy", {})},
        )
        config = RouterConfig(
            models=file,
            policy_dir=folder / "policies",
            listen="127.0.0.1:0",
            http_listen=f"127.0.0.1:{port}",
            worker_timeout=1.0,
            drain_seconds=0.1,
            queue_seconds=0.0,
            **options,
        )
        router = await held.enter_async_context(running(config))
        found = TwoModels(router, tiny, wordy, f"http://127.0.0.1:{port}")
        held.push_async_callback(found.session.aclose)
        if ready:
            await router.ready()
        yield found
