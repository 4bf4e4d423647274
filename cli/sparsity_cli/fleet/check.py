"""`sparsity check`: whether a router and what is behind it work, by doing a little of everything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property, partial
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc
from sparsity_client.wire import make_request, user_turn
from sparsity_rpc.errors import ConfigurationError, SparsityError, UnavailableError
from sparsity_rpc.status import to_error

from sparsity_cli.connection import call_metadata, channel_to
from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, escaped, out, print_json, reported, tier_word, waiting
from sparsity_cli.fleet.status import problems, served_models

_PROMPT = "Answer in one word: what is the capital of France?"
_TOKENS = 4


def check(
    router: Router = DEFAULT_ROUTER,
    domain: Annotated[str | None, typer.Option(help="Domain of the request that is sent.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each step.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask a router for its health, its workers, a route and a short answer; exits with 4 when a step fails."""
    with reported(), channel_to(router) as channel:
        steps = _Steps(channel, domain, timeout)
        found = {}
        for name, step in steps.all().items():
            with waiting(name):
                ok, detail = found[name] = _attempt(step)
            if not as_json:
                out.print(f"{'ok    ' if ok else 'FAILED'}  {name:<8}  {escaped(detail)}", soft_wrap=True)
        if as_json:
            print_json({name: {"ok": ok, "detail": detail} for name, (ok, detail) in found.items()})
        failed = [name for name, (ok, _) in found.items() if not ok]
        if failed:
            raise UnavailableError(f"{router}: {', '.join(failed)} failed")


def _attempt(step: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, step()
    except grpc.RpcError as error:
        return False, str(to_error(error))
    except SparsityError as error:
        return False, str(error)


class _Steps:
    """What is asked; each step returns what it found, and raises where it failed."""

    def __init__(self, channel: grpc.Channel, domain: str | None, timeout: float) -> None:
        self._request = make_request(user_turn(_PROMPT), domain=domain, max_new_tokens=_TOKENS, temperature=0.0)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._fleets: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self._options = {"timeout": timeout, "metadata": call_metadata()}

    def all(self) -> dict[str, Callable[[], str]]:
        """The steps by name."""
        return {
            "health": self._serving,
            "policies": self._policies,
            "files": self._files,
            "workers": self._workers,
            "route": partial(self._of_each, self._route),
            "answer": partial(self._of_each, self._answer),
        }

    def _serving(self) -> str:
        answer = self._health.Check(health_pb2.HealthCheckRequest(), **self._options)
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise UnavailableError(status)
        return status

    @cached_property
    def _fleet(self) -> fleet_pb2.GetFleetResponse:
        """What several steps look at: asked by the first, and by the next ones only where it failed."""
        found: fleet_pb2.GetFleetResponse = self._fleets.GetFleet(fleet_pb2.GetFleetRequest(), **self._options)
        return found

    def _workers(self) -> str:
        fleet = self._fleet
        models = {name: [tier for tier in fleet.tiers if tier.model == name] for name in served_models(fleet)}
        told = "; ".join(_named(name, _ready(tiers), models) for name, tiers in models.items())
        # Of a model that no worker serves at all nothing can be asked.
        missing = [name for name, tiers in models.items() if not any(tier.ready_workers for tier in tiers)]
        if missing or any(tier.workers and not tier.ready_workers for tier in fleet.tiers):
            raise UnavailableError(told)
        return told

    def _files(self) -> str:
        fleet = self._fleet
        if found := [problem for router, problem in problems(fleet) if router == fleet.router_id]:
            raise UnavailableError("; ".join(found))
        return "as they should be"

    def _of_each(self, step: Callable[[inference_pb2.GenerateRequest], str]) -> str:
        """What a step finds of a request to each model."""
        models = served_models(self._fleet)
        found = []
        for name in models:
            request = inference_pb2.GenerateRequest()
            request.CopyFrom(self._request)
            if name:
                request.model = name
            try:
                found.append(_named(name, step(request), models))
            except grpc.RpcError as error:
                raise UnavailableError(_named(name, str(to_error(error)), models)) from error
            except SparsityError as error:
                raise UnavailableError(_named(name, str(error), models)) from error
        return "; ".join(found)

    def _route(self, request: inference_pb2.GenerateRequest) -> str:
        asked = inference_pb2.RouteRequest(request=request)
        try:
            route = self._inference.Route(asked, **self._options)
        except grpc.RpcError as error:
            if not isinstance(to_error(error), ConfigurationError):
                raise
            decision = self._inference.Explain(inference_pb2.ExplainRequest(request=request), **self._options).decision
            return f"{_told(decision)}; this router signs no leases"
        return f"{_told(route.decision)}; worker at {route.endpoint}"

    def _policies(self) -> str:
        asked = inference_pb2.ExplainRequest(request=self._request)
        decision = self._inference.Explain(asked, **self._options).decision
        if decision.reason == inference_pb2.REASON_STALE_POLICY:
            raise UnavailableError(decision.explanation)
        return f"revision {decision.policy_revision}"

    def _answer(self, request: inference_pb2.GenerateRequest) -> str:
        text, completion = "", inference_pb2.Completion()
        for response in self._inference.Generate(request, **self._options):
            text += response.text
            completion = response.completion if response.HasField("completion") else completion
        if not completion.usage.completion_tokens:
            raise UnavailableError("the stream ended without a token")
        usage = completion.usage
        return f"{usage.completion_tokens} tokens by {completion.worker_id} for {usage.prompt_tokens}: {text!r}"


def _named(model: str, what: str, models: Collection[str]) -> str:
    return f"{model}: {what}" if len(models) > 1 else what


def _ready(tiers: Iterable[fleet_pb2.TierStatus]) -> str:
    return ", ".join(f"{tier_word(tier.tier)} {tier.ready_workers} of {tier.workers} ready" for tier in tiers)


def _told(decision: inference_pb2.Decision) -> str:
    reason = inference_pb2.Reason.Name(decision.reason).removeprefix("REASON_")
    return f"{tier_word(decision.tier)} by {reason}, policy {decision.policy or 'none'} {decision.policy_revision}"
