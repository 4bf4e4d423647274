"""`python -m sparsity_quality`: what is behind `sparsity bench quality` and `sparsity calibrate`, and `devices`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sparse_kernels.mean_correction import UNITS
from sparsity_rpc.errors import ConfigurationError, SparsityError

from sparsity_quality import commands
from sparsity_quality.calibration.target import Target
from sparsity_quality.tasks.cases import FAMILY_NAMES, Wanted

err = Console(stderr=True, highlight=False)

Model = Annotated[Path, typer.Option("--model", help="Folder of a Hugging Face model with grouped queries.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")]


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except SparsityError as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def bench(
    model: Model,
    profile: Annotated[list[str], typer.Option(help="Profile by name or path; may be given several times.")] = [],  # noqa: B006
    beside: Annotated[
        list[str],
        typer.Option(
            help="PROFILE=oracle or PROFILE=all: also what is set to the profile's density: the oracle and one"
            " threshold for all heads, or those and published selectors and fixed patterns."
        ),
    ] = [],  # noqa: B006
    lengths: Annotated[str, typer.Option(help="Tokens, separated by commas.")] = "1024,2048,4096,8192",
    families: Annotated[str, typer.Option(help="Kinds of cases, separated by commas.")] = ",".join(FAMILY_NAMES),
    samples: Annotated[int, typer.Option(min=1, help="Cases of each kind at each length.")] = 1,
    documents: Annotated[int, typer.Option(min=1, help="Long documents to follow at each length.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the generated cases.")] = 1,
    short: Annotated[
        str, typer.Option(help="Kinds of cases for selectors, patterns and the sweep, separated by commas.")
    ] = "needles,documents",
    sweep: Annotated[int, typer.Option(help="Length at which thresholds are swept; 0 for none.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Your own cases, JSON lines, in place of generated ones.")] = None,
    worker: Annotated[list[str], typer.Option(help="host:port of a running worker; one must be dense.")] = [],  # noqa: B006
    folder: Annotated[Path, typer.Option(help="Where results are kept, so that a run goes on where it ended.")] = Path(
        "quality-results"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder to write quality.json and the report to.")] = None,
    report_only: Annotated[bool, typer.Option(help="Measure nothing; report on the cells that there are.")] = False,
    device: Device = "cpu",
) -> None:
    """What profiles cost a model, by context length and task, beside dense attention."""
    with _reported():
        wanted = Wanted(_lengths(lengths), tuple(families.split(",")), samples=samples, documents=documents, seed=seed)
        chosen = dict(_beside(word) for word in beside)
        suite = commands.Suite(
            model, profile, chosen, wanted, data, worker, short.split(","), sweep, folder, device, report_only
        )
        with _progress() as done:
            table, tiers = commands.measure(suite, done, _say)
        typer.echo(commands.publish(table, tiers, suite, out))


def calibrate(
    model: Model,
    target: Annotated[str, typer.Option(help="coverage=0.97, perplexity=1.01, divergence=0.02 or density=0.22.")],
    out: Annotated[Path, typer.Option(help="YAML file to write.")],
    base: Annotated[str, typer.Option(help="Profile to start from, by name or path.")] = "generic-aggressive",
    length: Annotated[int, typer.Option(min=512, help="Tokens of each text.")] = 4096,
    texts: Annotated[Path | None, typer.Option(help="Folder of your own .txt files; three or more.")] = None,
    name: Annotated[str | None, typer.Option(help="The new profile's name; the file's without it.")] = None,
    mean_blocks: Annotated[
        str, typer.Option(help="Blocks behind a mean to choose from, such as 1,2,4; the base's without it.")
    ] = "",
    device: Device = "cpu",
) -> None:
    """Learns thresholds, dense layers and heads and decode budgets from text, and checks them on text held out."""
    with _reported():
        units = _mean_blocks(mean_blocks)
        lesson = commands.Lesson(model, Target.parse(target), base, length, texts, name or out.stem, out, device, units)
        profile, rows = commands.calibrate(lesson, _say)
        for row in rows:
            typer.echo(f"{row.name:<12} {row.value:.4f}   {row.baseline}: {row.baseline_value:.4f}   ({row.shape})")
        typer.echo(f"wrote {out}: {profile.label}, {len(profile.dense_layers)} dense layers")


def devices(
    folder: Annotated[Path, typer.Option(help="Results of the suite on the CPU.")],
    beside: Annotated[Path, typer.Option(help="Results of the same cases on a GPU.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write quality-devices.json to.")] = None,
) -> None:
    """Whether a GPU attends, answers and predicts as the CPU does."""
    with _reported():
        typer.echo(commands.compare_devices(folder, beside, out))


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise ConfigurationError(f"--lengths: must be whole numbers separated by commas, not {text!r}") from error


def _mean_blocks(text: str) -> tuple[int, ...]:
    if text and not {*text.split(",")} <= {*map(str, UNITS)}:
        raise ConfigurationError(f"--mean-blocks: must be some of {', '.join(map(str, UNITS))}, not {text!r}")
    return tuple(map(int, text.split(","))) if text else ()


def _beside(text: str) -> tuple[str, str]:
    name, _, word = text.partition("=")
    if word not in commands.BESIDE:
        raise ConfigurationError(f"--beside: must be PROFILE= and one of {', '.join(commands.BESIDE)}, not {text!r}")
    return name, word


def _say(line: str) -> None:
    err.print(line, style="dim", markup=False)


@contextmanager
def _progress() -> Iterator[commands.Done]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("starting")

        def done(number: int, total: int, what: str) -> None:
            progress.update(task, completed=number, total=total, description=what)
            if not err.is_terminal:
                err.print(f"{number}/{total} {what}", style="dim", markup=False)

        yield done


_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "bench": (bench, "sparsity bench quality"),
    "calibrate": (calibrate, "sparsity calibrate"),
    "devices": (devices, "python -m sparsity_quality devices"),
}


def main() -> None:
    """Runs the command that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in _COMMANDS:
        sys.exit(f"usage: python -m sparsity_quality {'|'.join(_COMMANDS)} [OPTIONS]")
    app_of(sys.argv[1])(args=sys.argv[2:], prog_name=_COMMANDS[sys.argv[1]][1])


def app_of(name: str) -> typer.Typer:
    """The command of this name, alone."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(_COMMANDS[name][0])
    return app


if __name__ == "__main__":
    main()
