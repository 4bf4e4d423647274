"""The benchmark of the kernels, dry: its checks find a wrong kernel, and it writes nothing that was not measured."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sparse_kernels import DecodeConfig
from sparsity_bench.kernels import __main__ as speed
from sparsity_bench.kernels import dense, gate, goals, kernels, parts, plot, recorded
from sparsity_bench.kernels.gate import Check, Gate
from sparsity_bench.kernels.inputs import PAGE, Shape, inputs
from sparsity_bench.kernels.ops import token_sparse_attention
from sparsity_bench.kernels.ops.sparse_paged_decode import Decodes, Load
from sparsity_bench.kernels.summary import summary
from sparsity_bench.kernels.timing import Clock, Times
from sparsity_serving.benchmark import Row, judged
from support.kernels.devices import DEVICE, INTERPRETED


@pytest.fixture
def interpreted() -> None:
    if not INTERPRETED:
        pytest.skip("a dry run is the interpreter's")


@pytest.mark.usefixtures("interpreted")
def test_a_dry_run_checks_times_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--dry", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "FAILED" not in told
    rows = [line.split(" | ") for line in told.splitlines() if line.count(" | ") == 2 and not line.startswith("|")]
    document = {"rows": [{"name": name, "shape": shape, "value": 1.0, "ratio": 1.0} for name, shape, _ in rows]}
    # The plot finds the rows that it draws.
    assert {line.split(", ")[0] for line in plot.tiers(document)} == {"aggressive", "moderate"}
    assert {"prefill, full index", "prefill, random 10%", "dense prefill, cuDNN"} <= plot.rates(document).keys()
    assert plot.steps(document)
    names = {name for name, _, _ in rows}
    for unit in (1, 2, 4):
        assert f"prefill, random 10%, means of {unit}, cool, extra time" in names
    assert {"selection, top_k, cool", "dense decode, ours, all pages", "lightning_scores, cool"} <= names
    # Scores by spread, halves of the base shape, and CuTe FlashAttention beside ours.
    assert {"decode, 192, spread", "decode, 192, spread, rate"} <= names
    assert {f"prefill, full index, cool, beside {dense.CUTE}", f"decode, 192, beside {dense.CUTE_PAGED}"} <= names
    halves = {name for name, shape, _ in rows if "d=16, float16, " in shape}
    assert {"prefill, full index, cool", "prefill, aggressive, means of 1, selection included, cool"} <= halves
    assert {"decode, 192", "dense decode, ours, all pages"} <= halves
    assert "are not written" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("interpreted")
def test_a_wrong_kernel_is_timed_by_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = kernels.block_sparse_prefill

    def wrong(*given: Any, **named: Any) -> Any:
        found = right(*given, **named)
        return found._replace(out=found.out * 1.01)

    monkeypatch.setattr(kernels, "block_sparse_prefill", wrong)
    assert speed.main(["--dry", "--only", "prefill", "tokens"]) == 1
    caught = capsys.readouterr()
    timed = [line for line in caught.out.splitlines() if line.count(" | ") == 2]
    assert not [line for line in timed if line.startswith("prefill")]
    # The others are right.
    assert [line for line in timed if line.startswith("selection")]
    assert [line for line in timed if line.startswith("token_sparse_latent_attention")]
    assert "checks failed; what they are of is not timed" in caught.err


@pytest.mark.usefixtures("interpreted")
def test_a_wrong_selection_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = kernels.selection_call

    def wrong(prompt: kernels.Prompt, config: Any) -> Any:
        # The blocks that are not the best, and as many.
        found = right(prompt, config)()
        other = found.kept.roll(1, -1) & prompt.before
        return lambda: found._replace(index=kernels.BlockIndex.of(other))

    monkeypatch.setattr(parts, "selection_call", wrong)
    assert speed.main(["--dry", "--checks-only"]) == 1
    assert "FAILED selection, means of 1" in capsys.readouterr().out


@pytest.mark.usefixtures("interpreted")
def test_parts_are_chosen_by_kind_and_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    taken: list[str] = []
    monkeypatch.setattr(speed._Run, "measure", lambda run, part: taken.append(part.name))
    assert speed.main(["--dry", "--only", "prefill", "shapes", "--named", "16, 256", "384"]) == 0
    assert taken == ["prefill, 2/1 heads, d=16, 384"]
    with pytest.raises(SystemExit):
        speed.main(["--dry", "--only", "tokens", "--named", "384"])
    assert "there are checks, 2/1 heads, d=16, " in capsys.readouterr().err


def test_what_is_found_is_written_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_absent", lambda: {"someone's kernel": "ModuleNotFoundError"})
    run = speed._Run(parts.DRY, tmp_path)

    def measured(clock: Clock, dtype: torch.dtype, passing: Gate) -> Any:
        passing.holds(Check("a kernel", 0.0, 1.0))
        yield Row("a kernel, cool", "a shape", 2.0, "ms")

    def broken(clock: Clock, dtype: torch.dtype, passing: Gate) -> Any:
        yield Row("another, cool", "a shape", 3.0, "ms")
        raise ValueError("q: has no kernel")

    run.measure(parts.Part("prefill", "one", measured))
    first = json.loads((tmp_path / "kernels.json").read_text())
    assert [row["name"] for row in first["rows"]] == ["a kernel, cool"]
    run.measure(parts.Part("prefill", "two", broken))
    second = json.loads((tmp_path / "kernels.json").read_text())
    assert [row["value"] for row in second["rows"]] == [2.0, 3.0]
    assert second["header"]["not run"] == ["two: ValueError: q: has no kernel"]
    assert second["header"]["checks"] == "1 passed, 1 failed"


def test_the_summary_tells_what_was_missed() -> None:
    rows = [
        judged(Row("fast, cool", "here", 2.0, "ms", "dense", 4.0, 2.0), ">= 1.5 times", met=True),
        Row("fast, cool, rate", "here", 500.0, "TFLOP/s"),
        judged(Row("slow, cool", "here", 2.0, "ms", "dense", 2.0, 1.0), ">= 1.5 times", met=False),
    ]
    told = summary(rows)
    assert "| fast, cool | here | 2 ms | 500 TFLOP/s | 2.00 (dense) |" in told
    assert "1 of 2 goals met; missed:\n- slow, cool, here: 1, goal >= 1.5 times" in told


def test_every_goal_is_of_something_that_is_measured() -> None:
    plan = parts.planned(quick=False)
    for bounds in (goals.FULL, goals.FORCED, goals.CORRECTION, goals.SELECTION_MS, *goals.PREFILL.values()):
        assert bounds.keys() == set(plan.prompts)
    loads = {(load.sequences, load.length): load.budgets for _, each in plan.loads for load in each}
    for budget, bounds in goals.DECODE.items():
        for load in bounds:
            assert budget in loads[load]


def test_a_copy_is_the_faster_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = Clock("cpu"), iter([2.0, 0.5])
    calls = []
    monkeypatch.setattr(clock, "layers", lambda each: (calls.extend(each), next(taken))[1])
    # Both directions of 2^18 numbers of 4 bytes in half a millisecond.
    assert clock.copy_tbps == pytest.approx(2 * 2**20 / 0.5e-3 / 1e12)
    assert [call() is None for call in calls] == [False, False]


@pytest.mark.usefixtures("interpreted")
def test_more_bandwidth_than_a_copy_has_is_written_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    passing, load = Gate(), Load(2, 384, (192,))

    def names(copy_tbps: float) -> list[str]:
        clock = Clock("cpu")
        vars(clock)["copy_tbps"] = copy_tbps
        return [row.name for row in Decodes(Shape(2, 1, 16), 384, 2, clock, torch.float32).rows(load, passing)]

    assert "decode, 192, rate" in names(1e6)
    assert not passing.failed
    assert "decode, 192" in (found := names(1e-12))
    assert "decode, 192, rate" not in found
    assert passing.failed == 1
    assert "FAILED decode, 192, share of a copy" in capsys.readouterr().out


def test_what_is_not_sustained_is_judged_cool() -> None:
    assert Times(0.1, None).last == "cool"
    assert Times(1.0, 1.1).last == "sustained"


def test_others_stand_beside_what_attends_as_much() -> None:
    assert recorded.flash_prefill_v2(32768, 0.189) == (0.2, 3.657)
    assert recorded.flash_prefill_v2(131072, 0.047) == (0.05, 19.85)
    assert recorded.flash_prefill_v2(65536, 0.092) == (0.1, 8.354)
    # A third of the pairs beside a fifth would say nothing.
    assert recorded.flash_prefill_v2(16384, 0.34) is None
    assert recorded.flash_prefill_v2(8192, 0.1) is None


@pytest.mark.parametrize("off", [1.0, 1.1])
@pytest.mark.usefixtures("interpreted")
def test_sglangs_own_stands_beside_ours_where_it_is_right(
    off: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def theirs(q: torch.Tensor, kv: torch.Tensor, tokens: torch.Tensor, scale: float, rank: int) -> torch.Tensor:
        held = kv[tokens.clamp_min(0).long()].double()
        scores = torch.einsum("thd,tkd->thk", q.double(), held) * scale
        shares = scores.masked_fill(tokens[:, None] < 0, -torch.inf).softmax(-1)
        return (off * shares @ held[..., :rank]).to(q.dtype)

    monkeypatch.setattr(token_sparse_attention, "sglang", lambda dtype: theirs)
    assert speed.main(["--dry", "--only", "tokens"]) == (off != 1.0)
    told = capsys.readouterr().out
    beside = "(SGLang's Triton sparse_mla_prefill)" in told
    assert beside is (off == 1.0)
    assert ("FAILED SGLang's Triton sparse_mla_prefill" in told) is (off != 1.0)
    assert "token_sparse_latent_attention, cool" in told


def test_sglangs_own_is_of_bfloat16() -> None:
    assert token_sparse_attention.sglang(torch.float32) is None
    found = token_sparse_attention.sglang(torch.bfloat16)
    if found is not None:
        assert list(inspect.signature(found).parameters)[:5] == ["q", "kv", "indices", "sm_scale", "d_v"]


@pytest.mark.usefixtures("interpreted")
def test_pages_that_are_not_the_best_by_spread_are_found() -> None:
    cached = Decodes(Shape(2, 1, 16), 384, 2, Clock("cpu"), torch.float32)
    step, passing = cached.steps(2)[0], Gate()
    config = DecodeConfig(sparse_from=0, budget=192, sink=64, recent=48, score="spread")
    pages = kernels.chosen_pages(step, config)
    out = kernels.decode_call(step, config)()
    assert passing.holds(*gate.decode("right", step, config, out, pages))
    # Of the two that were free to be chosen or left out the other.
    wrong = pages.clone()
    wrong[..., 1:5] = ~wrong[..., 1:5]
    assert not passing.holds(*gate.decode("wrong", step, config, out, wrong))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speed.main([]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


def test_inputs_have_topics_that_selection_can_find() -> None:
    given = inputs(Shape(4, 2, 16), 4096, DEVICE, torch.float32, queries=64)
    keys = given.sequence.gather()[0].flatten(1, 2)
    scores = torch.einsum("rhgd,hkd->rhgk", given.q.view(64, 2, 2, 16), keys) * given.scale
    mass = scores.softmax(-1).view(64, 2, 2, -1, PAGE).sum(-1).mean((0, 2))
    # A fifth of the blocks holds much more than a fifth of the mass.
    assert (mass.sort(-1, descending=True).values[:, : mass.shape[1] // 5].sum(-1) > 0.3).all()
    again = inputs(Shape(4, 2, 16), 4096, DEVICE, torch.float32, queries=64)
    assert torch.equal(again.q, given.q)
