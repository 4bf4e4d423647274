"""`sparsity generate`: one completion."""

from __future__ import annotations

from itertools import chain, islice
from typing import Annotated

import typer
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_client.wire.values import Gathered

from sparsity_cli.connection import client_of
from sparsity_cli.console import (
    DEFAULT_ROUTER,
    AsJson,
    Router,
    coverage,
    err,
    print_json,
    reported,
    tier_word,
    to_dict,
    waiting,
)
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
from sparsity_cli.requests.wishes import (
    Choice,
    GrammarFile,
    Model,
    Pattern,
    Schema,
    Seed,
    Tools,
    Top,
    Wishes,
    as_written,
)


def generate(
    text: Text = None,
    file: File = None,
    domain: Domain = None,
    task: Task = None,
    flag: Flag = None,
    max_tier: MaxTier = None,
    dense_reasoning: DenseReasoning = False,
    tenant: Tenant = None,
    session: Session = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; the model's own without it.")] = None,
    schema: Schema = None,
    pattern: Pattern = None,
    grammar: GrammarFile = None,
    tools: Tools = None,
    choice: Choice = None,
    top: Top = None,
    seed: Seed = None,
    model: Model = None,
    raw: Raw = False,
    direct: Annotated[bool, typer.Option(help="Stream from the worker itself, by a lease of the router.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.001, max=1e6, help="Deadline, seconds.")] = None,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Generate a completion and say how much attention it got, and why."""
    with reported():
        request = make_request(
            as_sent(read_prompt(text, file), raw),
            domain=domain,
            task=task,
            flags=flag or (),
            max_tier=read_tier(max_tier),
            dense_reasoning=dense_reasoning,
            tenant=tenant,
            session=session,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        Wishes(schema, pattern, grammar, tools, choice, top, seed, model).add_to(request)
        gathered, completion = Gathered(), inference_pb2.Completion()
        with client_of(router) as client:
            responses = client.generate(request, timeout, direct=direct)
            with waiting("the first token"):
                first = list(islice(responses, 1))
            for response in chain(first, responses):
                chunk = gathered.add(response)
                if not as_json:
                    typer.echo(chunk.reasoning, nl=False, err=True)
                    typer.echo(chunk.text, nl=False)
                if response.HasField("completion"):
                    completion = response.completion
        if as_json:
            print_json(as_written(gathered) | to_dict(completion))
            return
        typer.echo("\n".join(f"{call.name}({call.arguments})" for call in gathered.tool_calls()))
        _summary(completion)


def _summary(completion: inference_pb2.Completion) -> None:
    decision, usage = completion.decision, completion.usage
    reason = inference_pb2.Reason.Name(decision.reason).removeprefix("REASON_")
    lines: tuple[str, ...] = (
        f"tier {tier_word(decision.tier)}, {reason} ({decision.matched_rule}): {decision.explanation}",
        f"policy {decision.policy} at revision {decision.policy_revision}, decision {decision.decision_id}",
        f"worker {completion.worker_id}, {_attended(completion)}",
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), {usage.completion_tokens} new;"
        f" first after {usage.time_to_first_token.ToMilliseconds() / 1000:.2f} s,"
        f" all after {usage.total_time.ToMilliseconds() / 1000:.2f} s",
    )
    if decision.dense_reasoning and decision.tier != inference_pb2.TIER_DENSE:
        lines += (f"{completion.sparsity.dense_reasoning_tokens} tokens decoded densely, as reasoning",)
    for line in lines:
        err.print(f"[dim]{line.replace('[', chr(92) + '[')}[/dim]", soft_wrap=True)


def _attended(completion: inference_pb2.Completion) -> str:
    if not completion.HasField("sparsity"):
        return completion.unreported or "no report of what it attended"
    report = completion.sparsity
    return (
        f"profile {report.profile}, backend {report.backend}:"
        f" density {report.prefill_density:.3f} prefill, {report.decode_density:.3f} decode;"
        f" coverage {coverage(report)}, lowest layer {report.min_layer_coverage:.3f}"
    )
