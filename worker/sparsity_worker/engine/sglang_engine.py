"""The SGLang engine of this process: tokens in, tokens out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sparsity.v1 import inference_pb2
from sparsity_rpc import tracing
from sparsity_rpc.errors import ConfigurationError, EngineError, EngineLostError
from sparsity_rpc.tiers import DENSE
from sparsity_serving.engines import SGLANG

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.engine.grammar import abort
from sparsity_worker.engine.launching import endings, launch
from sparsity_worker.engine.logprobs import Scored, Scores, scored
from sparsity_worker.engine.running import Running, check_running
from sparsity_worker.engine.salt import cache_salt
from sparsity_worker.keys import FACTS_KEY, REPORT_KEY, TIER_KEY

if TYPE_CHECKING:
    from sparsity_worker.profiles.tier_profile import TierProfile

_RELEASE_SECONDS: Final = 5.0
_LOST: Final = "the worker's engine failed with this request in flight, and the worker ends; its log says why"


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine produced since the last step.

    Attributes:
        token_ids: new tokens.
        finish: SGLang's finish type (`stop`, `length`) in the last step.
        cached_tokens: prompt tokens that the prefix cache held.
        account: the packed account of the sparse backend so far; empty on the dense tier.
        facts: how that backend was set up, as JSON; of the probe only.
        logprobs: of the new tokens, where the request wants them.
        prompt_logprobs: of the prompt's tokens; in the first step, where the request wants them.
    """

    token_ids: list[int]
    finish: str | None
    cached_tokens: int
    account: bytes
    facts: str = ""
    logprobs: tuple[Scored, ...] = ()
    prompt_logprobs: tuple[Scored, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request in the engine's terms."""

    rid: str
    prompt: list[int]
    sampling: dict[str, Any]
    tier: str = DENSE
    cache_salt: str | None = None
    scores: Scores | None = None


class Engine:
    """An `sgl.Engine`, with the backend of the profiles where a tier is sparse.

    Construct it in the main thread: SGLang installs signal handlers and starts its scheduler process.

    Args:
        config: the worker's options.
        facts: its model.
        profiles: of the sparse tiers.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: that it computes in.
        page_size: tokens of a page of the KV cache.
        kv_tokens: that the KV cache holds.
        setup: how its attention backend was set up, by the fields of `EngineFacts`.

    Raises:
        ConfigurationError: when SGLang runs otherwise than it was asked to.
    """

    name: Final = SGLANG
    unreported: Final = ""

    def __init__(self, config: WorkerConfig, facts: ModelFacts, profiles: Mapping[str, TierProfile]) -> None:
        self._engine, self._ranks, arguments, self._traced, self.version = launch(config, facts, profiles)
        try:
            # What its scheduler said at its start; there is no other way to it that does not ask a process.
            running = Running.read(self._engine._scheduler_init_result.scheduler_infos[0])
            check_running(config, arguments, running)
        except ConfigurationError:
            self.shutdown()
            raise
        self._alone, self._lost = config.nodes.count == 1, False
        from sglang.srt.utils import is_flashinfer_available

        self.device, self.dtype, self.page_size = config.device, running.dtype, running.page_size
        self.kv_tokens, self.setup = running.kv_tokens, running.setup
        self._labels = {tier: profiles[tier].label if tier in profiles else tier for tier in config.tiers}
        profile = next(iter(profiles.values()), None)
        default = "flashinfer" if is_flashinfer_available() else "pytorch"
        self.expressions = config.allow_expressions
        # Other samplers refuse seeds, or take no notice of them.
        self.seeds = (self._engine.server_args.sampling_backend or default) == "pytorch"
        self.backend: str = profile.backend if profile else running.backend

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Step]:
        """Runs one request; leaving the iterator early aborts it in the engine.

        Raises:
            EngineError: when the engine refuses or aborts the request on its own.
            EngineLostError: when its processes failed meanwhile.
            InvalidRequestError: when it does so because of a grammar that the request brings.
        """
        if self._lost:
            raise EngineLostError(_LOST)
        finished, begun = False, False
        # SGLang aborts every request whose id begins with the given one: ids of one length never do so by accident.
        rid = uuid.uuid4().hex
        sampling = request.sampling
        if len(self._labels) > 1:
            sampling = sampling | {"custom_params": {**sampling.get("custom_params", {}), TIER_KEY: request.tier}}
        try:
            stream = await self._engine.async_generate(
                input_ids=request.prompt,
                sampling_params=sampling,
                rid=rid,
                stream=True,
                cache_salt=cache_salt(request.cache_salt, request.tier, self._labels[request.tier]),
                **(request.scores.arguments() if request.scores else {}),
                external_trace_header=dict(tracing.outgoing()) if self._traced else None,
            )
            async with aclosing(stream):
                async for chunk in stream:
                    meta = chunk["meta_info"]
                    reason = meta.get("finish_reason") or {}
                    if reason.get("type") == "abort":
                        finished = True
                        if self._lost:
                            raise EngineLostError(_LOST)
                        raise abort(str(reason.get("message", "no reason given")))
                    finished = bool(reason)
                    accounts = [account for account in meta.get(REPORT_KEY) or [] if account]
                    yield Step(
                        token_ids=list(chunk["output_ids"]),
                        finish=reason.get("type"),
                        cached_tokens=int(meta.get("cached_tokens", 0)),
                        account=accounts[-1] if accounts else b"",
                        facts=next(filter(None, meta.get(FACTS_KEY) or []), ""),
                        logprobs=scored(meta, "output"),
                        prompt_logprobs=() if begun else scored(meta, "input"),
                    )
                    begun = True
        except ValueError as error:
            finished = True
            raise EngineError(str(error)) from error
        finally:
            if not finished:
                self._engine.tokenizer_manager.abort_request(rid=rid)

    def report(
        self, tier: inference_pb2.Tier.ValueType, profile: str, account: bytes
    ) -> inference_pb2.SparsityReport | None:
        """What was attended of a request, by its packed account."""
        from sparsity_worker.engine.report import sparsity_report

        return sparsity_report(tier, profile, self.backend, account)

    async def used_tokens(self) -> int:
        """KV slots that live requests hold, prefix cache not counted, tokens."""
        loads = await self._engine.tokenizer_manager.get_loads()
        return sum(int(load.num_used_tokens) for load in loads)

    async def release(self) -> None:
        """Has the ranks of every node end of themselves: those of the others hear of it by no other way.

        A single node's need not: :meth:`shutdown` ends its processes.
        """
        if self._alone:
            return
        from sglang.srt.managers.io_struct import ShutdownReq

        await self._engine.tokenizer_manager._async_dispatch_to_scheduler(ShutdownReq())
        await asyncio.wait(endings(self._ranks), timeout=_RELEASE_SECONDS)

    def lose(self) -> None:
        """Ends every request with an error, of an engine whose processes have failed: no other end would come."""
        self._lost = True
        manager = self._engine.tokenizer_manager
        for rid in list(manager.rid_to_state):
            state = manager.rid_to_state.pop(rid)
            # What it drew last may be what the failure made of it.
            state.out_list[:] = [{"output_ids": [], "meta_info": {"finish_reason": {"type": "abort"}}}]
            state.finished = True
            state.event.set()

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()
