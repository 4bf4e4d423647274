from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sparsity_cli.capacity.costs import COMMITTED, read_costs
from sparsity_cli.capacity.queueing import waits, workers_for
from sparsity_cli.main import app
from sparsity_rpc.tiers import Tier
from typer.testing import CliRunner

RUNNER = CliRunner()


def reckoned(*arguments: str) -> dict[str, Any]:
    result = RUNNER.invoke(app, ["capacity", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("load", "places", "probability"),
    # Of Erlang's own tables and of textbooks; one place is an M/M/1 queue, which waits with its utilisation.
    [(0.7, 1, 0.7), (2.0, 3, 4 / 9), (8.0, 10, 0.409), (20.0, 25, 0.209), (5.0, 5, 1.0), (9.0, 3, 1.0)],
)
def test_waiting_is_erlangs(load: float, places: int, probability: float) -> None:
    assert waits(load, places) == pytest.approx(probability, abs=1e-3)


@pytest.mark.parametrize("load", [0.1, 1, 7.3, 100])
def test_a_worker_less_would_not_do(load: float) -> None:
    workers = workers_for(load, 32, 0.1)
    assert waits(load * 32, workers * 32) <= 0.1
    assert workers == 1 or waits(load * 32, (workers - 1) * 32) > 0.1
    assert workers_for(0, 32, 0.1) == 0


def test_shared_workers_need_fewer_gpus_than_dense_and_pools_more_up_to_eight() -> None:
    rows = {row["load"]: row for row in reckoned("--gpus-per-worker", "4")["rows"]}
    loads = (4, 8, 16, 32)
    assert [rows[load]["workers"]["dense"] for load in loads] == [6, 10, 19, 35]
    assert [rows[load]["workers"]["shared"] for load in loads] == [5, 8, 15, 27]
    assert [rows[load]["gpus"]["shared"] for load in loads] == [20, 32, 60, 108]
    more = {load: row["gpus"]["pools"] - row["gpus"]["dense"] for load, row in rows.items()}
    assert all(more[load] > 0 for load in (1, 2, 4, 8))
    assert more[32] < 0


def unshared(folder: Path) -> Path:
    """The result file without a worker of every tier."""
    document = json.loads(COMMITTED.read_text())
    document["rows"] = [row for row in document["rows"] if not row["name"].startswith("shared")]
    path = folder / "serving.json"
    path.write_text(json.dumps(document))
    return path


def test_all_ways_are_one_where_everything_is_dense(tmp_path: Path) -> None:
    found = reckoned("--mix", "dense=100", "--results", str(unshared(tmp_path)))
    assert any("1.000 at dense" in line and line.endswith("not measured") for line in found["assumptions"])
    for row in found["rows"]:
        assert row["gpus"]["dense"] == row["gpus"]["pools"] == row["gpus"]["shared"]


def test_shared_workers_are_reckoned_from_their_own_prompts(tmp_path: Path) -> None:
    costs, separate = read_costs(COMMITTED), read_costs(unshared(tmp_path))
    rows = {row["name"] + row["shape"]: row for row in json.loads(COMMITTED.read_text())["rows"]}
    name = "{}dense: time to first tokenLlama-3.1-8B, 1024 tokens, density 1.000"
    dense = rows[name.format("")]["value"]
    # Beside the dense tier of its own run: the one that is shown is of another, on another day.
    shared = pytest.approx(dense / rows[name.format("shared-")]["ratio"])
    assert costs.shared[Tier.DENSE].prefill_seconds(1024) == shared != rows[name.format("shared-")]["value"]
    own = costs.seconds(Tier.DENSE, 1024, 8, 32, shared=True) - costs.seconds(Tier.DENSE, 1024, 8, 32)
    assert own == pytest.approx(costs.shared[Tier.DENSE].prefill_seconds(1024) - dense)
    assert separate.seconds(Tier.DENSE, 1024, 8, 32, shared=True) == costs.seconds(Tier.DENSE, 1024, 8, 32)


def test_the_page_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (COMMITTED.parents[1] / "capacity.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```console\n\$ sparsity (.+?)\n(.+?)\n\.\.\.\n```$", page)
    monkeypatch.setenv("COLUMNS", "200")
    printed = RUNNER.invoke(app, block[0].split()).stdout
    shown = block[1].splitlines()
    assert [line.rstrip() for line in printed.splitlines()][: len(shown)] == shown
    prose = " ".join(page.split())
    for tokens, words in (
        (8192, "({0} shared against {1} dense at a load of 8, {2} against {3} at 32)"),
        (65536, "with 65,536 tokens more ({0} and {2})"),
        (1024, "need as many ({0} and {2})"),
    ):
        rows = reckoned("--prompt-tokens", str(tokens), "--load", "8,32")["rows"]
        assert words.format(*(row["workers"][kind] for row in rows for kind in ("shared", "dense"))) in prose


def test_rates_are_reckoned_by_what_a_request_costs() -> None:
    shape = ("--prompt-tokens", "8192", "--new-tokens", "8")
    (by_requests,) = reckoned("--requests-per-second", "30", *shape)["rows"]
    (by_tokens,) = reckoned("--tokens-per-second", str(30 * 8200), *shape)["rows"]
    assert by_requests == by_tokens
    seconds = read_costs(COMMITTED).seconds(Tier.DENSE, 8192, 8, 32)
    assert by_requests["load"] == pytest.approx(30 * seconds)
    (twice,) = reckoned("--requests-per-second", "30", *shape, "--gpus-per-worker", "2")["rows"]
    assert twice["load"] == pytest.approx(by_requests["load"] / 2)
    (own,) = reckoned("--requests-per-second", "30", *shape, "--dense-seconds", "0.5")["rows"]
    assert own["load"] == pytest.approx(15)


def test_costs_are_those_of_the_result_file() -> None:
    costs = read_costs(COMMITTED)
    measured = {row["name"] + row["shape"]: row["value"] for row in json.loads(COMMITTED.read_text())["rows"]}
    prefill = measured["dense: time to first tokenLlama-3.1-8B, 32768 tokens, density 1.000"]
    assert costs.tiers[Tier.DENSE].prefill_seconds(32768) == pytest.approx(prefill)
    # What was timed beside it: four sequences of 102,400 tokens at once.
    step = measured["dense: time per output tokenLlama-3.1-8B, 4 x 102400 tokens, density 1.000"]
    dense = costs.tiers[Tier.DENSE]
    assert dense.step_seconds + 4 * dense.sequence_seconds * 102400 / 32768 == pytest.approx(step, rel=0.05)
    short = [costs.seconds(tier, 1024, 100, 32) for tier in Tier]
    assert short[2] > 0.9 * short[0], "short prompts are read densely at every tier"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mix", "dense=50"), "--mix: must add up to 100 percent, not 50"),
        (("--mix", "dense=50,dense=50"), "--mix: must name each of dense, moderate, aggressive at most once"),
        (("--mix", "huge=100"), "not 'huge'"),
        (("--mix", "dense=nan"), "--mix: must add up"),
        (("--mix", "dense=-50,moderate=150"), "--mix: must add up"),
        (("--mix", "dense=many"), "--mix: dense: must be a percentage, not 'many'"),
        (("--load", "0"), "--load: must be more than 0"),
        (("--load", "1,x"), "--load: must be numbers"),
        (("--load", "4", "--tokens-per-second", "9"), "--tokens-per-second: give one of"),
        (("--requests-per-second", "-1"), "--requests-per-second: must be more than 0"),
        (("--requests-per-second", "1e9"), "--requests-per-second: keeps"),
        (("--prompt-tokens", "500"), "--prompt-tokens: was measured from 1024 to 102400, not 500"),
        (("--may-wait", "1"), "--may-wait: must be between 0 and 1"),
        (("--results", "/nowhere"), "--results: /nowhere: no result file"),
    ],
)
def test_wrong_words_are_refused_by_name(arguments: tuple[str, ...], words: str) -> None:
    result = RUNNER.invoke(app, ["capacity", *arguments])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())


def test_results_without_a_tier_are_refused(tmp_path: Path) -> None:
    document = json.loads(COMMITTED.read_text())
    document["rows"] = [row for row in document["rows"] if not row["name"].startswith("moderate: time per")]
    lacking = tmp_path / "serving.json"
    lacking.write_text(json.dumps(document))
    result = RUNNER.invoke(app, ["capacity", "--results", str(lacking)])
    assert "lacks times of the moderate tier" in " ".join(result.stderr.split())
