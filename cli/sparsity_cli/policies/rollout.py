"""`sparsity policy rollout`: introduce a policy's sparse tiers by percentage."""

from __future__ import annotations

from typing import Annotated

import typer
from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.rollout import Action
from sparsity_policies.wire import policy_from_wire
from sparsity_rpc.errors import InvalidRequestError

from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, escaped, out, print_json, reported, to_dict
from sparsity_cli.policies.service import DomainArgument, Reason, need_reason, seconds, service
from sparsity_cli.requests.prompts import read_tier

app = typer.Typer(help="Introduce a policy's sparse tiers by percentage.", no_args_is_help=True)


@app.command("start")
def start(
    domain: DomainArgument,
    steps: Annotated[str, typer.Option(help="Percentages, such as 5,25,100; the policy's own when left out.")] = "",
    held_back: Annotated[
        str | None,
        typer.Option(help="Sparsest tier of those held back: dense or moderate; else the last one's."),
    ] = None,
    sticky_by: Annotated[
        str, typer.Option(help="What keeps its side: session, tenant or request; else as the last rollout's.")
    ] = "",
    pause: Annotated[str, typer.Option(help="Time after which each step goes on by itself, such as 1h.")] = "",
    reason: Reason = "",
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Begin a rollout at its first step."""
    fresh = None
    with reported():
        if steps:
            fresh = policy_pb2.Rollout(steps=_percentages(steps), sticky_by=sticky_by)
            if tier := read_tier(held_back, "--held-back"):
                fresh.held_back = tier
            if pause:
                fresh.pauses.extend([int(seconds(pause, "--pause"))] * (len(fresh.steps) - 1))
        elif held_back or pause or sticky_by:
            raise InvalidRequestError.of("--steps", "is missing; a new rollout needs its percentages")
    _move(Action.START, domain, reason, router, as_json, fresh)


@app.command("promote")
def promote(
    domain: DomainArgument, reason: Reason = "", router: Router = DEFAULT_ROUTER, as_json: AsJson = False
) -> None:
    """Go to the next step."""
    _move(Action.PROMOTE, domain, reason, router, as_json)


@app.command("pause")
def pause(
    domain: DomainArgument, reason: Reason = "", router: Router = DEFAULT_ROUTER, as_json: AsJson = False
) -> None:
    """Stay at the present step."""
    _move(Action.PAUSE, domain, reason, router, as_json)


@app.command("resume")
def resume(
    domain: DomainArgument, reason: Reason = "", router: Router = DEFAULT_ROUTER, as_json: AsJson = False
) -> None:
    """Go on after a pause, or where it was halted."""
    _move(Action.RESUME, domain, reason, router, as_json)


@app.command("abort")
def abort(
    domain: DomainArgument, reason: Reason = "", router: Router = DEFAULT_ROUTER, as_json: AsJson = False
) -> None:
    """Go back to zero percent."""
    _move(Action.ABORT, domain, reason, router, as_json)


@app.command("status")
def status(domain: DomainArgument, router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """Show where a rollout is."""
    with service(router) as api:
        _show(api.get(domain), as_json)


def _percentages(text: str) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() and int(number) <= 100 for number in numbers):
        raise InvalidRequestError.of("--steps", f"must be percentages separated by commas, not {text!r}")
    return [int(number) for number in numbers]


def _move(
    action: Action,
    domain: str,
    reason: str,
    router: str,
    as_json: bool,
    fresh: policy_pb2.Rollout | None = None,
) -> None:
    with service(router) as api:
        need_reason(reason)
        request = policy_pb2.UpdateRolloutRequest(
            domain=domain,
            action=policy_pb2.RolloutAction.ValueType(action),
            reason=reason,
            rollout=fresh,
        )
        _show(api.call("UpdateRollout", request).policy, as_json)


def _show(stored: policy_pb2.StoredPolicy, as_json: bool) -> None:
    if as_json:
        print_json(to_dict(stored))
        return
    rollout = policy_from_wire(stored.policy).rollout
    if rollout is None:
        out.print(f"{stored.policy.domain}: no rollout; everything is let through")
        return
    place = f"step {rollout.step + 1} of {len(rollout.steps)} ({', '.join(map(str, rollout.steps))})"
    why = f", {rollout.halt_reason}" if rollout.halt_reason else ""
    others = f"the others get {rollout.held_back.word} at most" if rollout.percent < 100 else "nothing is held back"
    state = f"{stored.policy.domain}: {rollout.percent} percent {rollout.state}{why}"
    text = f"{state}; {place}, by {rollout.sticky_by.value}; {others}; revision {stored.revision}"
    out.print(escaped(text), soft_wrap=True)
