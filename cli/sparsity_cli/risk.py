"""`sparsity risk`: how well risk is found in texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from sparsity_policies.decisions.risk_report import Interval, Line, Report, check, report, totals
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import StoredPolicy
from sparsity_policies.risk.corpus import read_lines
from sparsity_policies.risk.weighing import acting
from sparsity_router.prompts.opinion.model_file import present
from sparsity_router.prompts.opinion.reader import Reader
from sparsity_rpc.errors import InvalidRequestError

from sparsity_cli.console import AsJson, escaped, out, print_json, reported
from sparsity_cli.policies.files import read_policies

app = typer.Typer(help="How well risk is found in texts.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A group, though it has one command."""


@app.command("evaluate")
def evaluate(
    data: Annotated[Path, typer.Option(help="JSON lines with domain, text and where known id, language, kind.")],
    policies: Annotated[Path | None, typer.Option(help="Folder of policy files; the shipped ones without it.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Ids of wrong texts to tell for each line.")] = 5,
    second_opinion: Annotated[
        bool, typer.Option("--second-opinion", help="Ask for one, as routers with --opinion-seconds do.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What detection misses and moves of labelled texts, by domain and language, without a router.

    A text's domain is that of a policy, or `harmless`. Of a domain of high risk it is missed where it would not be
    moved to one; of any other it is a false alarm where it would. Every domain counts as if its detection acted.
    """
    with reported():
        try:
            texts = read_lines(data.read_text(encoding="utf-8"), str(data))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError.of("--data", f"{data} cannot be read: {error}") from error
        if not texts:
            raise InvalidRequestError.of("--data", f"{data} has no text")
        chosen = list(read_policies([policies]).values()) if policies else shipped_policies("standard")
        snapshot = Snapshot.build(0, [StoredPolicy(policy, "", 0, 0.0, "", "") for policy in acting(chosen)])
        check(texts, snapshot, str(data))
        found = report(texts, snapshot, worst, Reader(present()).read if second_opinion else None)
        if as_json:
            print_json(_plain(found))
        else:
            _print(found)


def _plain(found: Report) -> dict[str, object]:
    def lines(several: tuple[Line, ...]) -> list[dict[str, object]]:
        return [line._asdict() | {"wrong": line.wrong._asdict(), "worst": list(line.worst)} for line in several]

    return {
        "missed": lines(found.risky),
        "false_alarms": lines(found.harmless),
        "milliseconds_per_kilobyte": found.milliseconds_per_kilobyte,
    }


def _print(found: Report) -> None:
    for title, lines in (("missed risk", found.risky), ("false alarms", found.harmless)):
        table = Table("domain", "language", "texts", title, "95 % interval", "unsure", "worst", box=None)
        for line in lines:
            table.add_row(
                escaped(line.domain),
                escaped(line.language) or "-",
                str(line.texts),
                *_shares(line.wrong),
                f"{100 * line.unsure:.1f} %",
                escaped(" ".join(line.worst)) or "-",
            )
        count = sum(line.texts for line in lines)
        table.add_row("all", "", str(count), *_shares(totals(lines)), "", "")
        out.print(table)
    out.print(f"{found.milliseconds_per_kilobyte:.3f} ms of processor time per KB")


def _shares(interval: Interval) -> tuple[str, str]:
    return f"{100 * interval.share:.1f} %", f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
