"""What a draft would do, before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.table import Table
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies.model import Tier
from sparsity_policies.wire import policy_to_wire
from sparsity_rpc.errors import InvalidRequestError

from sparsity_cli.console import (
    DEFAULT_ROUTER,
    AsJson,
    Router,
    clock,
    err,
    escaped,
    out,
    print_json,
    tier_word,
    to_dict,
)
from sparsity_cli.policies.files import read_policies
from sparsity_cli.policies.service import seconds, service

_REPLAY_TIMEOUT = 300.0
Draft = Annotated[Path, typer.Argument(help="YAML file of the draft.")]


def simulate(
    file: Draft,
    tokens: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "",
    signals: Annotated[Path | None, typer.Option(help="JSON lines of `sparsity.v1.Signals`.")] = None,
    task: Annotated[str, typer.Option(help="The task, with --tokens.")] = "",
    tenant: Annotated[str, typer.Option(help="The tenant, with --tokens.")] = "",
    session: Annotated[str, typer.Option(help="The session, with --tokens.")] = "",
    model: Annotated[str, typer.Option(help="The model, with --tokens; the router's first one without it.")] = "",
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Decide given requests by the present policies and by a draft."""
    with service(router) as api:
        draft = _draft(file)
        if bool(tokens) == (signals is not None):
            raise InvalidRequestError.of("--tokens", "give prompt lengths, or --signals with a file of JSON lines")
        context = {"domain": draft.domain, "task": task, "tenant": tenant, "session": session, "model": model}
        found = _read_signals(signals) if signals else _made_signals(tokens, context)
        answer = api.call("SimulatePolicy", policy_pb2.SimulatePolicyRequest(policy=draft, signals=found))
        if as_json:
            print_json(to_dict(answer))
            return
        table = Table("tokens", "domain", "before", "after", "because", box=None)
        for one, decision in zip(found, answer.decisions, strict=True):
            before, after = tier_word(decision.before.tier), tier_word(decision.after.tier)
            style = "bold" if before != after else ""
            cells = (str(one.max_tokens), one.domain, before, after, escaped(decision.after.explanation))
            table.add_row(*cells, style=style)
        out.print(table)
        _summary(answer.summary)


def replay(
    file: Draft,
    since: Annotated[str, typer.Option(help="How much of the decision log, such as 1h.")] = "1h",
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Decide recent traffic by the present policies and by a draft: what changes, what it saves, whom it risks."""
    with service(router) as api:
        request = policy_pb2.SimulatePolicyRequest(policy=_draft(file))
        request.replay.FromMilliseconds(int(seconds(since, "--since") * 1000))
        answer = api.call("SimulatePolicy", request, timeout=_REPLAY_TIMEOUT)
        if as_json:
            print_json(to_dict(answer))
            return
        if not answer.summary.requests:
            err.print(f"the decision log has nothing of the last {since}")
            return
        first, last = answer.summary.start_time, answer.summary.end_time
        out.print(f"{answer.summary.requests} requests from {clock(first)} to {clock(last)}")
        _summary(answer.summary)


def _draft(file: Path) -> policy_pb2.Policy:
    policies = read_policies([file])
    if len(policies) != 1:
        raise InvalidRequestError.of(str(file), f"holds {len(policies)} policies; one draft at a time")
    return policy_to_wire(next(iter(policies.values())))


def _made_signals(tokens: str, context: dict[str, str]) -> list[inference_pb2.Signals]:
    try:
        lengths = [int(part) for part in tokens.split(",")]
    except ValueError as error:
        raise InvalidRequestError.of("--tokens", f"must be numbers separated by commas, not {tokens!r}") from error
    if min(lengths) < 1 or max(lengths) >= 2**32:
        raise InvalidRequestError.of("--tokens", "must be at least 1, and below 2^32")
    fields: dict[str, Any] = context
    return [inference_pb2.Signals(min_tokens=n, max_tokens=n, **fields) for n in lengths]


def _read_signals(path: Path) -> list[inference_pb2.Signals]:
    found = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    found.append(json_format.ParseDict(json.loads(line), inference_pb2.Signals()))
                except (ValueError, json_format.ParseError) as error:
                    raise InvalidRequestError.of(f"{path}:{number}", f"is not a Signals message: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError.of(str(path), f"cannot be read: {error}") from error
    return found


def _summary(summary: policy_pb2.SimulationSummary) -> None:
    counts = {(int(change.before), int(change.after)): change.requests for change in summary.changes}
    table = Table("before \\ after", *(tier.word for tier in Tier), box=None)
    for before in Tier:
        table.add_row(before.word, *(str(counts.get((before.value, after.value), 0)) for after in Tier))
    out.print(table)
    if summary.HasField("before"):
        _cost("attention FLOPs", summary.before.flops, summary.after.flops)
        _cost("KV bytes read", summary.before.kv_bytes, summary.after.kv_bytes)
        kinds = [
            f"{tier_word(d.tier)} {d.prefill:.2f}/{d.decode:.2f} ({d.requests or 'assumed'})" for d in summary.densities
        ]
        out.print(f"densities prefill/decode (requests measured): {', '.join(kinds)}", soft_wrap=True)
    risk = f"high-risk or flagged requests whose tier changes: {summary.high_risk_changed}"
    out.print(f"{risk}, to a sparser one: {summary.high_risk_sparser}")
    if summary.unreadable_entries:
        err.print(f"{summary.unreadable_entries} entries of the decision log could not be read")


def _cost(name: str, before: float, after: float) -> None:
    change = f" ({(after - before) / before:+.1%})" if before else ""
    out.print(f"{name}: {before:.3g} before, {after:.3g} after{change}")
