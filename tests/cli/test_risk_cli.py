"""`sparsity risk evaluate` on files that users write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sparsity_cli.main import app
from sparsity_router.prompts.opinion.model_file import fetched
from typer.testing import CliRunner

runner = CliRunner()
SICK = "The patient was admitted with chest pain, raised troponin and ST elevation; aspirin and heparin were given."
PLAIN = "The bakery opens at seven, and on Saturdays there is rye bread."


def written(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_users_file_is_told_by_domain_and_language_with_intervals(tmp_path: Path) -> None:
    rows = [
        {"domain": "medical", "text": SICK, "id": "found", "language": "en"},
        {"domain": "medical", "text": PLAIN + " ", "id": "mislabelled", "language": "en"},
        {"domain": "harmless", "text": PLAIN, "id": "bakery"},
    ]
    done = runner.invoke(app, ["risk", "evaluate", "--data", str(written(tmp_path, *rows)), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    (missed,) = told["missed"]
    assert (missed["domain"], missed["language"], missed["texts"]) == ("medical", "en", 2)
    assert missed["worst"] == ["mislabelled"]
    assert missed["wrong"]["low"] < missed["wrong"]["share"] == 0.5 < missed["wrong"]["high"]
    (alarms,) = told["false_alarms"]
    assert alarms["wrong"]["share"] == 0.0
    assert told["milliseconds_per_kilobyte"] > 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"domain": "medical", "text": "one"}', "texts of one class"),
        ('{"domain": "harmless", "text": "one"}', "texts of one class"),
        ('{"domain": "nobody", "text": "one"}', "has no policy"),
        ('{"domain": "medical", "text": " "}', "text must be text"),
        ("no json", "is no JSON"),
        ("", "has no text"),
    ],
)
def test_a_file_that_says_nothing_is_refused_in_words(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text(content, encoding="utf-8")
    done = runner.invoke(app, ["risk", "evaluate", "--data", str(path)])
    assert done.exit_code != 0
    assert problem in " ".join(done.output.split())


def test_a_second_opinion_may_be_asked_for(tmp_path: Path) -> None:
    fetched()
    rows = [
        {"domain": "medical", "text": SICK, "id": "sick", "language": "en"},
        {"domain": "harmless", "text": PLAIN, "id": "bakery", "language": "en"},
    ]
    command = ["risk", "evaluate", "--data", str(written(tmp_path, *rows)), "--json", "--second-opinion"]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert [line["wrong"]["share"] for line in (*told["missed"], *told["false_alarms"])] == [0.0, 0.0]


def test_a_second_opinion_without_its_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSITY_OPINION_MODEL", str(tmp_path))
    rows = [{"domain": "medical", "text": SICK, "id": "a"}, {"domain": "harmless", "text": PLAIN, "id": "b"}]
    done = runner.invoke(app, ["risk", "evaluate", "--data", str(written(tmp_path, *rows)), "--second-opinion"])
    assert done.exit_code != 0
    assert "fetches it" in " ".join(done.output.split())
