"""The cells of two devices side by side, and folders that are not of the same thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sparsity_quality import __main__ as entry
from sparsity_quality import commands
from sparsity_quality.runs.origins import Origins
from sparsity_quality.tasks.cases import DOCUMENTS, Wanted
from sparsity_rpc.errors import ConfigurationError
from typer.testing import CliRunner

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def cpu(folder: Path, profile_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("cpu")
    wanted = Wanted((1024,), ("labels", DOCUMENTS))
    suite = commands.Suite(folder, [str(profile_file)], {}, wanted, None, (), (), 0, where, "cpu")
    commands.measure(suite, lambda *_: None, lambda _: None)
    return where


def test_cells_say_what_they_were_measured_on(cpu: Path, folder: Path) -> None:
    origins = Origins(cpu)
    found = [origins[digest] for digest in origins]
    assert [each.contender for each in found] == ["dense", "tiny-aggressive"]
    assert {(each.dtype, each.model) for each in found} == {("float32", folder.name)}
    assert "cores" in found[0].device
    assert found[0].attends != found[1].attends
    assert "torch" in found[0].versions


def moved(cpu: Path, to: Path, change: Change | None = None, origin: dict[str, str] | None = None) -> Path:
    """The cells of the CPU as those of another device, with changes."""
    cells = [json.loads(line) for line in (cpu / "cells.jsonl").read_text().splitlines()]
    origins = json.loads((cpu / "origins.json").read_text())
    for cell in cells:
        cell["digest"] = f"gpu {cell['digest']}"
        if change is not None:
            change(cell)
    other = {"device": "A GPU", "dtype": "bfloat16"} | (origin or {})
    origins = {f"gpu {digest}": each | other for digest, each in origins.items()}
    to.mkdir(exist_ok=True)
    (to / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    (to / "origins.json").write_text(json.dumps(origins))
    return to


def rows(cpu: Path, gpu: Path, out: Path) -> dict[str, dict[str, Any]]:
    commands.compare_devices(cpu, gpu, out)
    found = json.loads((out / "quality-devices.json").read_text())
    return {row["name"].partition(", standard")[0]: row for row in found["rows"]}


def test_equal_cells_meet_every_goal(cpu: Path, tmp_path: Path) -> None:
    found = rows(cpu, moved(cpu, tmp_path / "gpu"), tmp_path)
    assert set(found) == {
        f"{name}: {what}"
        for name in ("dense", "tiny-aggressive")
        for what in ("density, all layers", "points, mean over tasks", "answers alike", "perplexity")
    } | {"tiny-aggressive: divergence from the device's dense"}
    assert all(row["met"] is not False for row in found.values())
    assert all(row["value"] == row["baseline_value"] for row in found.values() if row["baseline"])
    assert found["dense: answers alike"]["value"] == 1.0
    assert found["tiny-aggressive: density, all layers"]["value"] < 1
    head = json.loads((tmp_path / "quality-devices.json").read_text())["header"]
    assert head["device"].startswith("A GPU, bfloat16, beside ")
    assert "A GPU, bfloat16" in (tmp_path / "quality-devices.md").read_text()


def test_what_differs_is_a_miss(cpu: Path, tmp_path: Path) -> None:
    def change(cell: dict[str, Any]) -> None:
        if cell["contender"] != "dense":
            cell["density"] += 0.011
            cell["scores"] = {task: [1 - value for value in values] for task, values in cell["scores"].items()}
            cell["answers"] = [f"{answer}?" for answer in cell["answers"]]
            if cell["reading"]:
                cell["reading"]["loss"] += 0.006

    found = rows(cpu, moved(cpu, tmp_path / "gpu", change), tmp_path)
    judged = {name: row["met"] for name, row in found.items() if row["met"] is not None}
    assert {name for name, met in judged.items() if not met} == {
        "tiny-aggressive: density, all layers",
        "tiny-aggressive: points, mean over tasks",
        "tiny-aggressive: perplexity",
    }
    assert found["tiny-aggressive: answers alike"]["value"] == 0.0


@pytest.mark.parametrize("name", ["attends", "model", "weights", "text"])
def test_folders_of_another_kind_are_refused_by_what_differs(cpu: Path, tmp_path: Path, name: str) -> None:
    gpu = moved(cpu, tmp_path / "gpu", origin={name: "another"})
    with pytest.raises(ConfigurationError, match=f"dense at 1024 tokens is of another kind .* {name} is another"):
        commands.compare_devices(cpu, gpu, None)


def test_folders_of_other_cases_are_refused_by_the_command(cpu: Path, tmp_path: Path) -> None:
    def change(cell: dict[str, Any]) -> None:
        cell["case"] = "other" if cell["family"] == DOCUMENTS else cell["case"]

    gpu = moved(cpu, tmp_path / "gpu", change)
    asked = CliRunner().invoke(entry.app_of("devices"), ["--folder", str(cpu), "--beside", str(gpu)])
    assert asked.exit_code == 2
    with pytest.raises(ConfigurationError, match=r"has no cell of dense at 1024 tokens .* \(4 such\)"):
        commands.compare_devices(cpu, gpu, None)


def test_folders_that_tell_too_little_or_too_much_are_refused(cpu: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no cells"):
        commands.compare_devices(cpu, tmp_path, None)
    both = moved(cpu, tmp_path / "both")
    with (both / "cells.jsonl").open("a") as file:
        file.write((cpu / "cells.jsonl").read_text())
    with pytest.raises(ConfigurationError, match="does not say what dense was measured on"):
        commands.compare_devices(both, cpu, None)
    known = json.loads((both / "origins.json").read_text()) | json.loads((cpu / "origins.json").read_text())
    (both / "origins.json").write_text(json.dumps(known))
    with pytest.raises(ConfigurationError, match="dense was measured in two ways"):
        commands.compare_devices(both, cpu, None)
    (both / "origins.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="tells no origins"):
        commands.compare_devices(both, cpu, None)


def test_what_has_no_kernels_is_refused_on_a_gpu(folder: Path, profile_file: Path, tmp_path: Path) -> None:
    wanted = Wanted((1024,), ("labels",))
    beside = {"tiny-aggressive": "oracle"}
    suite = commands.Suite(folder, [str(profile_file)], beside, wanted, None, (), (), 0, tmp_path, "cuda")
    with pytest.raises(ConfigurationError, match="--device: selectors and the oracle have no kernels"):
        commands.measure(suite, lambda *_: None, lambda _: None)
