"""`sparsity demo`: requests of every kind through the running service."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from sparsity.v1 import inference_pb2
from sparsity_client.wire import WireClient, make_request, user_turn
from sparsity_policies.model import Reason, Tier
from sparsity_router.embedded.folders import state_folder
from sparsity_router.embedded.state import Running, read_running
from sparsity_router.prompts.corpus import excerpt
from sparsity_rpc.errors import SparsityError, UnavailableError
from sparsity_serving.engines import ECHO

from sparsity_cli.connection import client_of
from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, State, err, escaped, out, print_json, reported, waiting

_QUESTION = "\n\nQuestion: in one sentence, what is the text above about?"
_CHARACTERS_PER_TOKEN = 4.0
_COUNTED_IN = "rag"
# A mean over layers need not be 1 to the last bit.
_WHOLE = 1 - 1e-9
_FIRST_BYTE, _BYTES = 20, 70
_LINE = "{:<30} {:>6}  {:<10}  {:<16} {:>7} {:>8} {:>6} {:>13} {:>8}  {}"
_HEADINGS = ("request", "tokens", "tier", "reason", "density", "coverage", "cached", "first token s", "tokens/s", "")


# Of a killed worker that was the only one: how long it may take to load again, and between two tries.
_RETURN_SECONDS, _PATIENCE_SECONDS = 300.0, 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and the tier that the shipped small-context policies give it."""

    name: str
    tokens: int
    domain: str | None
    tier: Tier
    reason: Reason
    flags: Sequence[str] = ()
    planted: str = ""
    task: str | None = None
    as_token_ids: bool = False
    max_tier: Tier | None = None
    kill: bool = False
    text: int = 0


# Dense requests begin with the same text, which their tier's cache reads once: no decision on them hangs on it. They
# follow each other, before the cache has to make room. Sparse ones have texts of their own, so that each shows what its
# tier prunes, and are a little longer than their band or profile wants.
CASES = (
    Case("short chat", 0, "support-chat", Tier.DENSE, Reason.LENGTH_BAND),
    Case("long RAG", 4400, "rag", Tier.AGGRESSIVE, Reason.LENGTH_BAND),
    Case("the same, medical", 4400, "medical", Tier.DENSE, Reason.LENGTH_BAND),
    Case("RAG flagged by the caller", 4400, "rag", Tier.DENSE, Reason.FLAGGED, flags=("abuse",)),
    Case("RAG with a risk phrase inside", 4400, "rag", Tier.DENSE, Reason.FLAGGED, planted=" I want to\ndie. "),
    Case("caller asks for dense", 4400, "rag", Tier.DENSE, Reason.CALLER_REQUESTED, max_tier=Tier.DENSE),
    Case("unknown domain", 2000, "astrology", Tier.DENSE, Reason.UNKNOWN_DOMAIN),
    Case("token ids", 1200, "summarization", Tier.MODERATE, Reason.LENGTH_BAND, as_token_ids=True),
    Case("long code", 4800, "code", Tier.MODERATE, Reason.LENGTH_BAND, text=1),
    Case("code search, by rule", 4400, "code", Tier.AGGRESSIVE, Reason.RULE_MATCH, task="search", text=2),
    Case("a worker is killed", 4400, "summarization", Tier.MODERATE, Reason.TIER_UNAVAILABLE, kill=True, text=3),
)
# With one worker of every tier nobody else can serve: refused, and once the worker is back what policy says.
ALONE = Case("the worker is killed", 4400, "summarization", Tier.AGGRESSIVE, Reason.LENGTH_BAND, kill=True, text=3)


@dataclass(slots=True)
class Row:
    """What a case came to."""

    name: str
    expected: str
    tier: str = "-"
    reason: str = "-"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    density: float | None = None
    decode_density: float | None = None
    coverage: float | None = None
    unreported: str = ""
    first_token_seconds: float = 0.0
    tokens_per_second: float = 0.0
    text: str = ""
    problem: str = ""
    refused: str = ""
    away_seconds: float = 0.0
    ok: bool = field(default=False)

    @property
    def sparse(self) -> bool:
        """Whether a sparse tier answered."""
        return self.tier not in ("-", Tier.DENSE.word)

    @property
    def whole(self) -> str:
        """What a sparse tier attended all the same, in words; empty where it pruned.

        Empty, too, where most of the prompt was in the cache: density tells of the rest, whose end is always dense.
        """
        if (
            not self.sparse
            or self.density is None
            or self.density < _WHOLE
            or 2 * self.cached_tokens > self.prompt_tokens
        ):
            return ""
        return "attended everything" if (self.decode_density or 0.0) >= _WHOLE else "attended the whole prompt"


def demo(
    new_tokens: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Tokens to generate for each request.")] = 8,
    kill: Annotated[bool, typer.Option(help="Also kill a worker of the embedded service in the middle.")] = True,
    router: Router = DEFAULT_ROUTER,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Send requests of every kind; exit 0 only if each gets the tier that the shipped policies say."""
    with reported(), client_of(router) as client:
        running = read_running(state or state_folder()) if kill else None
        rows = []
        if not as_json:
            out.print(_LINE.format(*_HEADINGS), soft_wrap=True)
        for case in (_fitting(case, running) for case in CASES if kill or not case.kill):
            with waiting(case.name):
                row = _run(client, case, new_tokens, running if case.kill else None)
            rows.append(row)
            if not as_json:
                _print(row)
    if as_json:
        print_json([{name: getattr(row, name) for name in Row.__slots__} for row in rows])
    _sum_up(rows)
    raise typer.Exit(0 if all(row.ok for row in rows) else 1)


def _fitting(case: Case, running: Running | None) -> Case:
    """The case as it must end in what runs."""
    return ALONE if case.kill and running is not None and running.is_shared else case


def _sum_up(rows: list[Row]) -> None:
    right, sparse = sum(row.ok for row in rows), [row for row in rows if row.sparse]
    err.print(f"{right} of {len(rows)} requests got the tier and reason that policy says")
    if whole := sum(bool(row.whole) for row in sparse):
        short = "a prompt shorter than the profile's sparse_from is read densely"
        err.print(f"{whole} of {len(sparse)} answers of sparse tiers read their whole prompt: {short}", soft_wrap=True)
    if cached := sum(row.cached_tokens > 0 for row in rows):
        sooner = "the cache of their tier had so many tokens, and their first token came sooner"
        err.print(f"{cached} of {len(rows)} requests read only the rest of their prompt: {sooner}", soft_wrap=True)
    for reason in sorted({row.unreported for row in rows if row.unreported}):
        err.print(f"no density, no coverage: {reason}", soft_wrap=True)


def _run(client: WireClient, case: Case, new_tokens: int, running: Running | None) -> Row:
    row = Row(case.name, f"{case.tier.word} {case.reason.name}")
    try:
        request = _request(client, case, new_tokens)
        if running is not None:
            _kill(running)
        if case is ALONE:
            _answer_after_return(client, request, row)
        else:
            _answer(client, request, row)
    except SparsityError as error:
        row.problem = str(error)
        return row
    row.ok = f"{row.tier} {row.reason}" == row.expected
    if case is ALONE and not row.refused:
        row.ok, row.problem = False, "it was answered while its only worker was away"
    return row


def _answer(client: WireClient, request: inference_pb2.GenerateRequest, row: Row) -> None:
    """Has one request answered, and fills in what came."""
    started, first, at_first, produced = time.monotonic(), 0.0, 0, 0
    for response in client.generate(request, timeout=300.0):
        if response.token_ids and not first:
            first, at_first = time.monotonic() - started, len(response.token_ids)
        produced += len(response.token_ids)
        row.text += response.text
        if response.HasField("completion"):
            _fill(row, response.completion)
    row.first_token_seconds = first
    decoding = time.monotonic() - started - first
    row.tokens_per_second = (produced - at_first) / decoding if produced > at_first else 0.0


def _answer_after_return(client: WireClient, request: inference_pb2.GenerateRequest, row: Row) -> None:
    """The same, sent again while nobody serves, as a caller would."""
    started = time.monotonic()
    while True:
        try:
            _answer(client, request, row)
            return
        except UnavailableError as error:
            row.refused, row.away_seconds = row.refused or str(error), time.monotonic() - started
            if row.away_seconds > _RETURN_SECONDS:
                raise
            time.sleep(_PATIENCE_SECONDS)


def _fill(row: Row, completion: inference_pb2.Completion) -> None:
    row.tier = Tier(completion.decision.tier).word
    row.reason = Reason(completion.decision.reason).name
    row.prompt_tokens, row.cached_tokens = completion.usage.prompt_tokens, completion.usage.cached_tokens
    row.unreported = completion.unreported
    if completion.HasField("sparsity"):
        report = completion.sparsity
        row.density, row.decode_density, row.coverage = report.prefill_density, report.decode_density, report.coverage


def _request(client: WireClient, case: Case, new_tokens: int) -> inference_pb2.GenerateRequest:
    text = _sized(client, case.tokens, case.text) if case.tokens else "What is the capital of France?"
    if case.planted:
        # Late: what comes before it is in the cache.
        place = len(text) * 3 // 4
        text = text[:place] + case.planted + text[place:]
    prompt: str | list[int] | inference_pb2.ChatPrompt = user_turn(text + _QUESTION if case.tokens else text)
    if case.as_token_ids:
        # Plain bytes in every byte-level vocabulary, whose special tokens come before or after them.
        prompt = [_FIRST_BYTE + 3 * step % _BYTES for step in range(case.tokens)]
    return make_request(
        prompt,
        domain=case.domain,
        task=case.task,
        flags=case.flags,
        max_tier=case.max_tier.wire if case.max_tier else None,
        max_new_tokens=new_tokens,
    )


def _sized(client: WireClient, tokens: int, part: int) -> str:
    """An excerpt of about ``tokens`` tokens, as the router counts them; another one for each part."""
    start = part * 40_000
    guess = excerpt(int(tokens * _CHARACTERS_PER_TOKEN), start)
    # A declared domain spares the router the search for one, which takes most of a second at such a length.
    counted = client.explain(make_request(guess, domain=_COUNTED_IN)).signals.max_tokens
    return excerpt(int(len(guess) * tokens / counted), start)


def _kill(running: Running) -> None:
    """Kills the aggressive tier's worker while it reads the prompt; an echo, which answers at once, before that."""
    pid = running.workers[Tier.AGGRESSIVE.word].pid
    if running.engine == ECHO:
        os.kill(pid, signal.SIGKILL)
    else:
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()


def _print(row: Row) -> None:
    wrong = f"[red]expected {row.expected}[/red] {escaped(row.problem)}"
    verdict = "[green]as policy says[/green]" if row.ok else wrong
    if row.ok and row.refused:
        verdict = f"refused for {row.away_seconds:.0f} s while nobody served, then {verdict}"
    mark = f", [yellow]but {row.whole}[/yellow]" if row.whole else ""
    line = _LINE.format(
        row.name,
        row.prompt_tokens,
        row.tier,
        row.reason,
        "-" if row.density is None else f"{row.density:.3f}",
        "-" if row.coverage is None else f"{row.coverage:.3f}",
        row.cached_tokens,
        f"{row.first_token_seconds:.2f}",
        f"{row.tokens_per_second:.1f}",
        verdict + mark,
    )
    out.print(line, soft_wrap=True)
