"""`sparsity outcome`: report how good an answer was."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsity_cli.connection import client_of
from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, out, print_json, reported


def outcome(
    decision_id: Annotated[str, typer.Argument(help="The decision id that came with the answer.")],
    score: Annotated[float, typer.Option(help="From 0 to 1, by your own measure.")],
    metric: Annotated[str, typer.Option(help="Your measure, such as exact_match.")],
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Report how good an answer was; guards on quality dips judge rollouts by it."""
    with reported(), client_of(router) as client:
        client.report_outcome(decision_id, score, metric)
        if as_json:
            print_json({"decision_id": decision_id, "score": score, "metric": metric})
            return
        out.print(f"{decision_id}: {metric} {score:g} taken up")
