"""Result files of several runs of a benchmark become one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sparsity_bench.joined import join
from sparsity_serving.benchmark import Row, write

HEAD = {"device": "card", "versions": {"torch": "2"}, "kernels": {"triton": "3"}, "command": "make bench-kernels"}


def run(folder: Path, date: str, *rows: Row, **changed: object) -> Path:
    write(folder, "kernels", HEAD | {"date": date, "checks": f"{len(rows)} passed"} | changed, rows)
    return folder / "kernels.json"


def test_the_last_of_two_rows_counts_and_every_run_is_told(tmp_path: Path) -> None:
    first = run(tmp_path / "a", "day 1", Row("prefill", "8k", 2.0, "ms"), Row("decode", "1", 5.0, "us a layer"))
    others = {"torch": "2", "rich": "15", "fa4": "ImportError: no fa4"}
    second = run(tmp_path / "b", "day 2", Row("decode", "1", 4.0, "us a layer"), note="warm", versions=others)
    join("kernels", [first, second], tmp_path / "out")
    document = json.loads((tmp_path / "out/kernels.json").read_text())
    assert [(row["name"], row["value"]) for row in document["rows"]] == [("prefill", 2.0), ("decode", 4.0)]
    assert document["header"]["run 1"] == "date: day 1; checks: 2 passed; versions: torch 2"
    assert document["header"]["run 2"] == "date: day 2; checks: 1 passed; note: warm; versions: torch 2, rich 15, fa4"
    assert document["header"]["date"] == "day 2"


def test_what_was_joined_takes_another_run(tmp_path: Path) -> None:
    files = [run(tmp_path / day, day, Row("decode", "1", float(day), "ms")) for day in "123"]
    join("kernels", files[:2], tmp_path / "two")
    join("kernels", [tmp_path / "two/kernels.json", files[2]], tmp_path / "all")
    document = json.loads((tmp_path / "all/kernels.json").read_text())
    assert [row["value"] for row in document["rows"]] == [3.0]
    assert [key for key in document["header"] if key.startswith("run ")] == ["run 1", "run 2", "run 3"]
    assert document["header"]["run 2"].startswith("date: 2;")
    join("kernels", [files[2], tmp_path / "two/kernels.json"], tmp_path / "later")
    header = json.loads((tmp_path / "later/kernels.json").read_text())["header"]
    assert [header[f"run {number}"][:7] for number in (1, 2, 3)] == ["date: 3", "date: 1", "date: 2"]


@pytest.mark.parametrize(("key", "other"), [("device", "another"), ("kernels", {"triton": "2"})])
def test_runs_that_differ_are_refused(key: str, other: object, tmp_path: Path) -> None:
    files = [run(tmp_path / "a", "day"), run(tmp_path / "b", "day", **{key: other})]
    with pytest.raises(ValueError, match=f"b/kernels.json: {key} is"):
        join("kernels", files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_result_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(ValueError, match=r"odd\.json: is no result file"):
        join("kernels", [tmp_path / "odd.json"], tmp_path / "out")
