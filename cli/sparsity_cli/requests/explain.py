"""`sparsity explain`: a decision without generating."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.table import Table
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request

from sparsity_cli.connection import client_of
from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, escaped, out, print_json, reported, tier_word, to_dict
from sparsity_cli.requests.prompts import (
    DenseReasoning,
    Domain,
    File,
    Flag,
    MaxTier,
    Raw,
    Session,
    Task,
    Tenant,
    Text,
    as_sent,
    read_prompt,
    read_tier,
)
from sparsity_cli.requests.wishes import Model

_FORMS: Final = {
    "written": "as it is written",
    "normal": "in the normal form",
    "hyphenated": "joined over a line's end",
    "disguised": "in disguise",
}


def explain(
    text: Text = None,
    file: File = None,
    domain: Domain = None,
    task: Task = None,
    flag: Flag = None,
    max_tier: MaxTier = None,
    dense_reasoning: DenseReasoning = False,
    tenant: Tenant = None,
    session: Session = None,
    model: Model = None,
    raw: Raw = False,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show the part of the prompt that was found, not only its place.")
    ] = False,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Show the tier a prompt would get, every check behind it, and what would change it."""
    with reported(), client_of(router) as client:
        request = make_request(
            as_sent(read_prompt(text, file), raw),
            domain=domain,
            task=task,
            flags=flag or (),
            max_tier=read_tier(max_tier),
            dense_reasoning=dense_reasoning,
            tenant=tenant,
            session=session,
        )
        if model is not None:
            request.model = model
        answer = client.explain(request)
        if as_json:
            print_json(to_dict(answer))
            return
        signals, decision = answer.signals, answer.decision
        reason = inference_pb2.Reason.Name(decision.reason).removeprefix("REASON_")
        out.print(f"[bold]{tier_word(decision.tier)}[/bold]  {reason}  {decision.explanation}", soft_wrap=True)
        out.print(f"policy {decision.policy} at revision {decision.policy_revision}")
        flags = ", ".join(signals.flags) or "none"
        domain = signals.domain or "none"
        if signals.domain_source == inference_pb2.DOMAIN_SOURCE_DETECTED:
            certainty = f" with confidence {signals.confidence:.2f}" if signals.HasField("confidence") else ""
            instead = f" in the place of {signals.declared_domain}" if signals.declared_domain else ""
            domain += f" (detected{certainty}{instead})"
        domain += "".join(f", also {other}" for other in signals.also_found)
        out.print(
            f"model {escaped(signals.model) or 'unknown'}, {signals.max_tokens} prompt tokens,"
            f" {signals.scanned_bytes} bytes scanned, domain {domain}, task {signals.task or 'none'}, flags {flags}",
            soft_wrap=True,
        )
        if decision.dense_reasoning and decision.tier != inference_pb2.TIER_DENSE:
            out.print("reasoning spans of the answer decode densely")
        told = [finding for finding in answer.findings if finding.outcome != "none"]
        for finding in told or answer.findings[:1]:
            out.print(_finding(finding, request, show_text), soft_wrap=True)
        table = Table("check", "matched", "tier", "detail", box=None)
        for step in answer.steps:
            check = step.check.replace("[", "\\[")
            table.add_row(check, "yes" if step.matched else "no", tier_word(step.tier), step.detail.replace("[", "\\["))
        out.print(table)
        for match in answer.matches:
            out.print(_found(match, request, show_text), soft_wrap=True, markup=False, highlight=False)
        if answer.alternatives:
            out.print("Another tier:")
            for sentence in answer.alternatives:
                out.print(f"  {sentence}")


def _finding(finding: inference_pb2.RiskFinding, request: inference_pb2.GenerateRequest, show_text: bool) -> str:
    """What a part of the text is like, with its place; the text itself only where it is asked for."""
    told = f"characters {finding.start} to {finding.end} are like {escaped(finding.domain)}"
    told += f" with probability {finding.probability:.2f}, {finding.threshold:.2f} is enough: {finding.outcome}"
    if finding.HasField("second_opinion"):
        told += f" (linear model {finding.first_opinion:.2f}, second opinion {finding.second_opinion:.2f})"
    if show_text:
        words = request.text or "\n".join(message.content for message in request.chat.messages)
        told += f"\n  {escaped(words[finding.start : finding.end])}"
    return told


def _found(match: inference_pb2.ScanMatch, request: inference_pb2.GenerateRequest, show_text: bool) -> str:
    """A literal or pattern with where it was found; what the prompt has there only where it is asked for."""
    encoded, _, form = match.form.rpartition(" ")
    told = f"{match.domain}: {match.expression!r} at characters {match.start} to {match.end}, {_FORMS.get(form, form)}"
    if encoded:
        told += ", in base64"
    if show_text:
        words = request.text or "\n".join(message.content for message in request.chat.messages)
        told += f": {words[match.start : match.end]!a}"
    return told
