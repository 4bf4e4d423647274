"""`sparsity trace`: one request's trace as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from sparsity_router.embedded.folders import state_folder
from sparsity_router.embedded.trace_tree import Span, read_trace
from sparsity_router.embedded.traces import FILE_NAME, older
from sparsity_rpc.errors import NotFoundError

from sparsity_cli.console import AsJson, State, escaped, out, print_json, reported

_BAR = 24
_SHOWN = ("sparsity.", "gen_ai.")
# The branches of a line, as they go on below it.
_BELOW = str.maketrans({"├": "│", "─": " ", "└": " "})


def trace(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="A trace id or a decision id, or how one begins.")],
    file: Annotated[
        list[Path] | None,
        typer.Option(help="File of an OpenTelemetry collector's file exporter; the embedded service's without it."),
    ] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show why a request got its tier, and where its time went."""
    with reported():
        roots = read_trace(file or _kept(state), wanted.lower())
        if as_json:
            print_json([_plain(root) for root in roots])
            return
        _show(roots)


def _kept(state: Path | None) -> list[Path]:
    newest = (state or state_folder()) / FILE_NAME
    found = [path for path in (older(newest), newest) if path.exists()]
    if not found:
        problem = "start the service with `make run` or `sparsity up`, or give a collector's file with --file"
        raise NotFoundError(f"no traces are kept in {newest.parent}; {problem}")
    return found


def _show(roots: list[Span]) -> None:
    begin = min(root.start for root in roots)
    total = max(span.end for _, span in _walk(roots)) - begin
    width = max(len(prefix) + len(_label(span)) for prefix, span in _walk(roots))
    out.print(f"trace {roots[0].trace_id}, {total / 1e9:.3f} s")
    out.print(f"{'span (service)':<{width}}  {'from':>12} {'takes':>12}", style="dim")
    for prefix, span in _walk(roots):
        times = f"{(span.start - begin) / 1e6:>9.1f} ms {span.seconds * 1e3:>9.1f} ms"
        error = f"  [red]{escaped(span.error)}[/red]" if span.error else ""
        label = escaped(_label(span)) + " " * (width - len(prefix) - len(_label(span)))
        line = f"{prefix}[bold]{label}[/bold]  {times}  [cyan]{_bar(span, begin, total)}[/cyan]{error}"
        out.print(line, soft_wrap=True)
        if told := _told(span):
            out.print(f"{prefix.translate(_BELOW)}  [dim]{escaped(told)}[/dim]", soft_wrap=True)


def _walk(spans: list[Span], prefix: str = "") -> Iterator[tuple[str, Span]]:
    """Every span, those under it after it, with the branches before its name."""
    for place, span in enumerate(spans):
        last = place == len(spans) - 1
        yield (f"{prefix}{'└─' if last else '├─'} " if prefix or len(spans) > 1 else ""), span
        yield from _walk(span.children, f"{prefix}{'   ' if last else '│  '}")


def _bar(span: Span, begin: int, total: int) -> str:
    first = round((span.start - begin) / max(total, 1) * _BAR)
    last = max(round((span.end - begin) / max(total, 1) * _BAR), first + 1)
    return "".join("━" if first <= place < last else "┄" for place in range(_BAR))


def _label(span: Span) -> str:
    return f"{span.name.strip()} ({span.service})"


def _told(span: Span) -> str:
    """What a span says of the request; what it says of its process is in --json."""
    told = [(key, value) for key, value in span.attributes.items() if key.startswith(_SHOWN) and value not in ("", [])]
    # Ours first: they say why.
    told.sort(key=lambda entry: not entry[0].startswith(_SHOWN[0]))
    return ", ".join(f"{key.removeprefix(_SHOWN[0])}={_short(value)}" for key, value in told)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(span: Span) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "name": span.name,
        "service": span.service,
        "start_unix_nano": span.start,
        "seconds": span.seconds,
        "error": span.error,
        "attributes": span.attributes,
        "children": [_plain(child) for child in span.children],
    }
