"""What `sparsity bench quality` and `sparsity calibrate` do."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving import benchmark
from sparsity_serving.benchmark import Row
from sparsity_worker.profiles.profile import Profile

from sparsity_quality.calibration import profiles
from sparsity_quality.calibration.calibrate import Calibration
from sparsity_quality.calibration.target import Target
from sparsity_quality.calibration.texts import built_in, from_folder
from sparsity_quality.reports import charts, devices, goals, report, warning
from sparsity_quality.reports.table import Table
from sparsity_quality.runs.origins import Origin, Origins
from sparsity_quality.runs.results import Results
from sparsity_quality.runs.suite import Cases, DenseReading, Lineup, Local, Subject, run
from sparsity_quality.runs.workers import Worker
from sparsity_quality.subjects.contenders import Contender, one_threshold
from sparsity_quality.subjects.lineup import Contenders
from sparsity_quality.subjects.model import LocalModel
from sparsity_quality.tasks import corpus
from sparsity_quality.tasks.cases import DOCUMENTS, Wanted, cases_at, own_cases

BESIDE = {
    "none": (),
    "oracle": ("oracle", "uncalibrated"),
    "all": ("oracle", "uncalibrated", "selector", "pattern"),
}
_SHORT = ("selector", "pattern", "sweep")
_SWEEP = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
Done = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Suite:
    """What `sparsity bench quality` measures.

    Attributes:
        model: folder of a Hugging Face model.
        profiles: names or paths.
        beside: rivals by profile name, words of :data:`BESIDE`; for profiles without one, none.
        wanted: the generated cases.
        data: a team's own cases; alone when given.
        workers: targets of running workers in place of the model in this process.
        short: kinds of cases for selectors, patterns and the sweep, which are many.
        sweep: length at which a sweep of single thresholds shows what coverage foretells; 0 for none.
        folder: where cells are kept.
        device: of torch.
        report_only: measures nothing; reports on the cells that there are.
    """

    model: Path
    profiles: Sequence[str]
    beside: Mapping[str, str]
    wanted: Wanted
    data: Path | None
    workers: Sequence[str]
    short: Sequence[str]
    sweep: int
    folder: Path
    device: str
    report_only: bool = False


def measure(suite: Suite, done: Done, said: Callable[[str], None]) -> tuple[Table, dict[str, str]]:
    """Runs what is not known yet.

    Returns:
        The standings, and the tier of each profile by its name in them.

    Raises:
        ConfigurationError: for options that do not go together, and for what cannot be loaded or put to the model.
    """
    results = Results(suite.folder / "cells.jsonl")
    if suite.workers:
        return _workers(suite, results, done)
    if not suite.profiles:
        raise ConfigurationError("--profile: give at least one; sparsity_worker.profiles has some, or run calibrate")
    if suite.beside:
        _on_the_cpu(suite.device, "selectors and the oracle")
    loaded = profiles.load(list(suite.profiles))
    for name in suite.beside:
        if name not in loaded:
            raise ConfigurationError(f"--beside: {name} is not among the profiles {', '.join(loaded)}")
    model = LocalModel(suite.model, max(suite.wanted.lengths), suite.device)
    for profile in loaded.values():
        model.check(profile)
    if suite.data:
        cases = own_cases(suite.data, model.encode, max(suite.wanted.lengths))
    else:
        cases = {length: cases_at(suite.wanted, length, model.encode) for length in suite.wanted.lengths}
    kinds = {name: BESIDE[word] for name, word in suite.beside.items()}
    lineup = Contenders(model, loaded, kinds, suite.folder, said)
    dense = DenseReading(model)
    lines: dict[int, list[Subject]] = {}
    origins = Origins(suite.folder)

    def subjects(length: int) -> list[Subject]:
        if length not in lines:
            chosen = lineup.at(length) + (_sweep(next(iter(loaded.values()))) if length == suite.sweep else [])
            line = [Local(each, model, dense, suite.short if each.kind in _SHORT else None) for each in chosen]
            if not suite.report_only:
                origins.note({one.digest: Origin.of(each, model) for one, each in zip(line, chosen, strict=True)})
            lines[length] = [*line]
        return lines[length]

    if not suite.report_only:
        run(cases, subjects, results, done)
    return _table(results, cases, subjects), {name: profile.tier for name, profile in loaded.items()}


def _on_the_cpu(device: str, what: str) -> None:
    if device != "cpu":
        raise ConfigurationError(f"--device: {what} have no kernels of their own; measure them with --device cpu")


def _sweep(profile: Profile) -> list[Contender]:
    """The profile's selector with one threshold for all heads, from few blocks to most."""
    found = []
    for threshold in _SWEEP:
        prefill = replace(profile.prefill, threshold=threshold, sparse_from=0)
        found.append(Contender(f"threshold {threshold:g}", "sweep", one_threshold(profile, prefill)))
    return found


def _workers(suite: Suite, results: Results, done: Done) -> tuple[Table, dict[str, str]]:
    tokenizer = suite.model / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigurationError(f"--model: {suite.model} has no tokenizer.json; give the folder of the workers' model")
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))

    def encode(text: str) -> list[int]:
        ids: list[int] = loaded.encode(text, add_special_tokens=False).ids
        return ids

    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    found = [Worker(target, encode, digest) for target in suite.workers]
    found.sort(key=lambda worker: worker.kind != "dense")
    if found[0].kind != "dense":
        raise ConfigurationError("--worker: give a dense worker too; without one there is nothing to compare with")
    longest = max(suite.wanted.lengths)
    for worker in found:
        if worker.context_length < longest:
            raise ConfigurationError(f"--lengths: {worker.name} takes {worker.context_length} tokens, not {longest}")
    if suite.data:
        cases = own_cases(suite.data, encode, longest)
    else:
        # Workers tell no probabilities, so there is no following of documents.
        families = tuple(name for name in suite.wanted.families if name != DOCUMENTS)
        wanted = replace(suite.wanted, families=families)
        cases = {length: cases_at(wanted, length, encode) for length in wanted.lengths}
    if not suite.report_only:
        run(cases, lambda length: found, results, done)
    tiers = {worker.name: worker.tier for worker in found if worker.kind == "profile"}
    return _table(results, cases, lambda length: found), tiers


def _table(results: Results, cases: Cases, subjects: Lineup) -> Table:
    table = Table(results, cases, subjects)
    if not table.standings:
        raise ConfigurationError("--report-only: there are no cells of these cases in the folder yet")
    return table


def publish(table: Table, tiers: Mapping[str, str], suite: Suite, out: Path | None) -> str:
    """The report; with ``out``, also quality.json, quality.md, and the full report with charts in quality/."""
    longest = max(one.length for one in table.standings)
    verdict = goals.rows(table, tiers, longest)
    text, warned = warning.section(table)
    command = _command("sparsity bench quality")
    extra = {"model": suite.model.name, "text": corpus.fingerprint(), "seed": suite.wanted.seed}
    head = benchmark.header(command, extra)
    if out is None:
        return report.markdown(head, table, verdict, text)
    benchmark.write(out, "quality", head, [*verdict, *warned])
    folder = out / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = charts.draw(table, folder)
    whole = report.markdown(head, table, verdict, text, drawn)
    (folder / "README.md").write_text(whole, encoding="utf-8")
    return whole


def _command(name: str) -> str:
    """The command line; where files lie on this machine is nobody's business."""
    return " ".join([name, *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[2:])])


def compare_devices(folder: Path, beside: Path, out: Path | None) -> str:
    """The cells of two folders side by side; with ``out``, also quality-devices.json and quality-devices.md.

    Raises:
        ConfigurationError: when they are not of the same cases, model, text and profiles.
    """
    base, other = devices.read(folder), devices.read(beside)
    rows = devices.compare(base, other)
    head = benchmark.header(
        _command("python -m sparsity_quality devices"),
        {"device": f"{other.label}, beside {base.label}", "versions": dict(other.origin.versions)}
        | {
            "versions of the CPU's run": dict(base.origin.versions),
            "model": base.origin.model,
            "text": base.origin.text,
        },
    )
    if out is not None:
        benchmark.write(out, "quality-devices", head, rows)
    return benchmark.markdown("quality-devices", {"header": head, "rows": [asdict(row) for row in rows]})


@dataclass(frozen=True, slots=True)
class Lesson:
    """What `sparsity calibrate` learns.

    Attributes:
        model: folder of a Hugging Face model.
        target: what to reach.
        base: name or path of the profile to start from.
        length: tokens a text.
        texts: folder of text files; the text that comes with Python when None.
        name: of the new profile.
        out: file to write.
        device: of torch.
        mean_blocks: numbers of blocks behind a mean to choose from; the base's when empty.
    """

    model: Path
    target: Target
    base: str
    length: int
    texts: Path | None
    name: str
    out: Path
    device: str
    mean_blocks: Sequence[int] = ()


def calibrate(lesson: Lesson, said: Callable[[str], None]) -> tuple[Profile, Sequence[Row]]:
    """Learns and writes a profile.

    Returns:
        The profile as a worker would load it, and what was measured on held-out text.
    """
    _on_the_cpu(lesson.device, "the curves that calibrate learns from")
    base = next(iter(profiles.load([lesson.base]).values()))
    model = LocalModel(lesson.model, lesson.length, lesson.device)
    if lesson.texts:
        texts = from_folder(lesson.texts, model.encode, lesson.length)
    else:
        texts = built_in(model.encode, lesson.length)
    found = Calibration(model, base, texts, said, lesson.mean_blocks).reach(lesson.target)
    profile = profiles.write(lesson.out, lesson.name, base, found, model, lesson.length)
    shape = f"{lesson.length} tokens, held out"
    single = found.report["one_threshold"]
    rows = [
        Row(what, shape, value, "", baseline="one threshold", baseline_value=single[what])
        for what, value in found.report["held_out"].items()
    ]
    return profile, rows
