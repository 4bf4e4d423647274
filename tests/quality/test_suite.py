"""Cells measured once, kept, and taken up again after a kill; a team's own cases; reports with misses left in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sparsity_quality import commands
from sparsity_quality.reports import charts, goals, report, warning
from sparsity_quality.reports.table import Table
from sparsity_quality.runs.results import Cell, Results
from sparsity_quality.runs.suite import run
from sparsity_quality.subjects.model import LocalModel
from sparsity_quality.tasks.case import Case, Question
from sparsity_quality.tasks.cases import DOCUMENTS, Wanted, cases_at, own_cases
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving import benchmark

FAMILIES = ("labels", "frequencies", DOCUMENTS)


def suite(folder: Path, profile_file: Path, where: Path, **changes: object) -> commands.Suite:
    wanted = Wanted((512, 1024), FAMILIES)
    plain = commands.Suite(
        folder, [str(profile_file)], {"tiny-aggressive": "all"}, wanted, None, (), FAMILIES, 1024, where, "cpu"
    )
    return replace(plain, **changes)


def quiet(*_: object) -> None:
    return


@pytest.fixture(scope="module")
def measured(folder: Path, profile_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Path]:
    where = tmp_path_factory.mktemp("cells")
    table, tiers = commands.measure(suite(folder, profile_file, where), quiet, quiet)
    assert tiers == {"tiny-aggressive": "aggressive"}
    return table, where


def test_everybody_is_there_at_every_length(measured: tuple[Table, Path]) -> None:
    table, _ = measured
    short = {one.subject.name for one in table.standings if one.length == 512}
    long = {one.subject.kind for one in table.standings if one.length == 1024}
    assert short == {"dense", "tiny-aggressive"}
    assert long == {"dense", "profile", "oracle", "uncalibrated", "selector", "pattern", "sweep"}


def test_dense_is_measured_against_itself(measured: tuple[Table, Path]) -> None:
    dense = measured[0].at("dense", 1024)
    assert dense is not None
    assert (dense.loss, dense.doubt, dense.perplexity, dense.agreement) == (0.0, 0.0, 1.0, 1.0)


def test_a_profile_that_begins_later_shares_the_cells_of_dense(measured: tuple[Table, Path]) -> None:
    table, where = measured
    assert table.at("tiny-aggressive", 512).density == 1.0
    lines = [json.loads(line) for line in (where / "cells.jsonl").read_text().splitlines()]
    assert {line["contender"] for line in lines if line["length"] == 512} == {"dense"}


def test_sparse_cells_are_sparse_and_lose_something(measured: tuple[Table, Path]) -> None:
    own = measured[0].at("tiny-aggressive", 1024)
    assert own is not None
    assert own.density < 0.9
    assert own.divergence is not None
    assert own.divergence > 1e-6


def test_a_second_run_measures_nothing(measured: tuple[Table, Path], folder: Path, profile_file: Path) -> None:
    table, where = measured
    before = (where / "cells.jsonl").read_bytes()
    again, _ = commands.measure(suite(folder, profile_file, where), quiet, quiet)
    assert (where / "cells.jsonl").read_bytes() == before
    assert [one.tasks for one in again.standings] == [one.tasks for one in table.standings]


def test_a_report_can_be_made_without_measuring(measured, folder: Path, profile_file: Path, tmp_path: Path) -> None:
    table, where = measured
    (tmp_path / "cells.jsonl").write_bytes((where / "cells.jsonl").read_bytes())
    (tmp_path / "settings.json").write_bytes((where / "settings.json").read_bytes())
    again, _ = commands.measure(suite(folder, profile_file, tmp_path, report_only=True), quiet, quiet)
    assert len(again.standings) == len(table.standings)
    assert (tmp_path / "cells.jsonl").read_bytes() == (where / "cells.jsonl").read_bytes()
    empty = suite(folder, profile_file, tmp_path / "empty", report_only=True, beside={}, sweep=0)
    with pytest.raises(ConfigurationError, match="--report-only: there are no cells"):
        commands.measure(empty, quiet, quiet)


def test_a_killed_run_goes_on_where_it_ended(folder: Path, profile_file: Path, tmp_path: Path) -> None:
    cells = tmp_path / "results" / "cells.jsonl"
    command = [
        sys.executable,
        "-m",
        "sparsity_quality",
        "bench",
        "--model",
        str(folder),
        "--profile",
        str(profile_file),
    ]
    command += ["--lengths", "1024", "--families", ",".join(FAMILIES), "--folder", str(cells.parent)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (cells.exists() and cells.read_text().count("\n") >= 2):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = cells.read_text().splitlines()[:2]
    # As if it had been killed in the middle of a line.
    with cells.open("a") as file:
        file.write('{"contender": "dense", "dig')
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = cells.read_text().splitlines()
    assert lines[:2] == kept
    assert len(lines) == len({(json.loads(line)["digest"], json.loads(line)["case"]) for line in lines}) == 6
    assert "| tiny-aggressive | profile |" in finished.stdout


def test_a_line_that_is_no_cell_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text('{"contender": "dense"}\n')
    with pytest.raises(ConfigurationError, match="line 1 is not a result; delete it or the file"):
        Results(path)


def test_a_cell_comes_back_as_it_was_written(tmp_path: Path) -> None:
    cell = Cell("x", "d", "f", "c", 512, 0, 0.5, 0.9, 1.5, {"t": [1.0, 0.5]}, ["a", "b\n"], {"loss": 2.0})
    Results(tmp_path / "cells.jsonl").append(cell)
    assert list(Results(tmp_path / "cells.jsonl")) == [cell]
    assert cell.key in Results(tmp_path / "cells.jsonl")


def test_the_report_shows_goals_tables_and_charts(measured: tuple[Table, Path], tmp_path: Path) -> None:
    table, _ = measured
    rows = goals.rows(table, {"tiny-aggressive": "aggressive"}, 1024)
    judged = {row.name: row for row in rows if row.goal}
    assert judged["tiny-aggressive: density, all layers"].met is False
    assert any("beats one threshold" in name for name in judged)
    text, warned = warning.section(table)
    assert "## Coverage as an early warning" in text
    assert any(row.name.startswith("guard: ") for row in warned) or "does not tell" in text
    drawn = charts.draw(table, tmp_path)
    assert drawn == ["quality-by-length.png", "quality-by-density.png", "speed-and-quality.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    whole = report.markdown({"device": "x"}, table, rows, text, drawn)
    assert "**no**" in whole
    assert "### 1024 tokens" in whole
    benchmark.write(tmp_path, "quality", {"device": "x"}, [*rows, *warned])
    assert json.loads((tmp_path / "quality.json").read_text())["rows"][-1]["name"]


class Scripted:
    """A subject that answers what it was told to."""

    def __init__(self, name: str, kind: str, answers: list[str]) -> None:
        self.name, self.kind, self.digest, self.families = name, kind, name, None
        self._answers = answers

    def measure(self, case: Case, blank: Cell) -> Cell:
        from sparsity_quality.runs.suite import scored

        return replace(blank, density=0.2, scores=scored(case, self._answers), answers=self._answers, seconds=1.0)


def test_points_lost_and_their_doubt_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    questions = tuple(Question(task, "?", ("yes",), "exact", 3) for task in ("a", "a", "b", "b"))
    cases = {1024: [(0, Case("own", (1, 2, 3), questions))]}
    subjects = [
        Scripted("dense", "dense", ["yes", "yes", "yes", "no"]), Scripted("p", "profile", ["yes", "no", "yes", "no"]),
        Scripted("uncalibrated beside p", "uncalibrated", ["no", "no", "yes", "no"]),
    ]  # fmt: skip
    results = Results(tmp_path / "cells.jsonl")
    run(cases, lambda length: subjects, results, quiet)
    table = Table(results, cases, lambda length: subjects)
    own = table.at("p", 1024)
    assert own is not None
    assert own.tasks == {"a": 50.0, "b": 50.0}
    # Task a loses 0 and 100, task b nothing: a mean of 25, and errors of 50 and 0, halved.
    assert own.loss == 25.0
    assert own.doubt == pytest.approx(25.0)
    (row,) = [row for row in goals.rows(table, {"p": "moderate"}, 1024) if "beats" in row.name]
    assert (row.value, row.met) == (0.5, False)
    assert "1 won, 1 equal, 0 lost" in row.shape


def test_the_guard_is_the_least_coverage_above_which_nothing_missed() -> None:
    def cell(coverage: float, ratio: float) -> Cell:
        from math import log

        read = {"loss": 1 + log(ratio), "dense_loss": 1.0}
        return Cell("x", "d", DOCUMENTS, "c", 1024, 0, 0.2, coverage, 1.0, reading=read)

    cells = [cell(0.99, 1.001), cell(0.95, 1.005), cell(0.9, 1.02), cell(0.85, 1.004)]
    assert warning.guard(cells, 1.01) == 0.95
    assert warning.guard(cells, 1.05) == 0.85
    assert warning.guard(cells, 1.0) is None


OWN = {"context": "the sky is blue", "prompt": "\nThe sky is", "answers": ["blue"]}


def test_a_teams_own_cases_are_grouped_by_context(model: LocalModel, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    other = OWN | {"prompt": "\nIt is", "metric": "f1", "task": "colours", "new_tokens": 4, "stop": "."}
    long = OWN | {"context": "x" * 600}
    path.write_text("\n".join(map(json.dumps, [OWN, other, long])))
    cases = own_cases(path, model.encode, 2048)
    assert {length: len(each) for length, each in cases.items()} == {512: 1, 1024: 1}
    first, second = cases[512][0][1].questions
    assert (first.task, first.metric, first.new_tokens, first.stop) == ("own", "contains", 32, "\n")
    assert (second.task, second.metric, second.new_tokens, second.stop) == ("colours", "f1", 4, ".")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: must be an object"),
        (json.dumps(OWN | {"answer": "x"}), "line 1: answer: is not a field; fields are context, prompt"),
        (json.dumps(OWN | {"prompt": 3}), "line 1: prompt: must be of type str"),
        (json.dumps(OWN | {"answers": [1]}), "line 1: answers: must be texts"),
        (json.dumps(OWN | {"answers": []}), "line 1: answers: must hold at least one text"),
        (
            json.dumps(OWN | {"metric": "bleu"}),
            "metric: must be one of contains, recall, exact, prefix, f1, not 'bleu'",
        ),
        (json.dumps(OWN | {"context": "x" * 3000}), "a context of 3000 tokens and its question exceed 2048 positions"),
        ("", "holds no case"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, message: str, model: LocalModel, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigurationError, match=message):
        own_cases(path, model.encode, 2048)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wanted(()), "--lengths: must be 512 tokens or more each"),
        (lambda: Wanted((100,)), "--lengths: must be 512 tokens or more each"),
        (lambda: Wanted((512,), ("poems",)), "--families: must be of needles, facts"),
        (lambda: Wanted((512,), samples=0), "--samples: must be at least 1"),
        (lambda: Wanted((512,), documents=0), "--documents: must be at least 1"),
        (lambda: cases_at(Wanted((90_000,), (DOCUMENTS,), documents=9), 90_000, list), "--documents: the text at hand"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_documents_of_a_length_do_not_overlap() -> None:
    cases = cases_at(Wanted((2048,), (DOCUMENTS,), documents=6), 2048, lambda text: list(text.encode()))
    assert len({case.tokens for _, case in cases}) == 6


def test_the_command_hides_where_files_lie(measured, folder: Path, profile_file: Path, monkeypatch) -> None:
    table, where = measured
    monkeypatch.setattr(sys, "argv", ["x", "bench", "--model", str(folder), "--lengths", "512"])
    text = commands.publish(table, {}, suite(folder, profile_file, where), None)
    assert f"- command: sparsity bench quality --model {folder.name} --lengths 512\n" in text
    assert str(folder) not in text
    assert os.sep + "tmp" not in text
