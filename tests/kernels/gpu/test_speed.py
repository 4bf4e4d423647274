"""The benchmark of the kernels, dry: its checks find a wrong kernel, and it writes nothing that was not measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sparse_kernels import plot
from sparsity_quality.speed import __main__ as speed
from sparsity_quality.speed import gate, prefill, recorded
from sparsity_quality.speed.inputs import PAGE, Shape, inputs
from support.devices import DEVICE, INTERPRETED


@pytest.fixture
def interpreted() -> None:
    if not INTERPRETED:
        pytest.skip("a dry run is the interpreter's")


@pytest.mark.usefixtures("interpreted")
def test_a_dry_run_checks_times_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--dry", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.count("ok    ") == 5
    for words in (
        "dense, torch cuDNN",
        "ours, full index",
        "ours, forced index",
        "share of selection",
        "decode, moderate",
    ):
        assert words in told
    assert "are not written" in told
    # The plot finds the rows that it draws.
    lines = [line.split(" | ") for line in told.splitlines() if line.startswith("ours, aggressive, selection")]
    rows = [{"name": name, "shape": shape, "ratio": 1.0} for name, shape, _ in lines]
    assert list(plot.points({"rows": rows})) == ["aggressive, 4/2 heads, d=16"]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("interpreted")
def test_a_wrong_kernel_is_timed_by_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = gate.sparse_paged_decode
    monkeypatch.setattr(gate, "sparse_paged_decode", lambda *given: right(*given) * 1.01)
    monkeypatch.setattr(prefill, "rows", lambda *_: pytest.fail("timed all the same"))
    assert speed.main(["--dry"]) == 1
    caught = capsys.readouterr()
    assert caught.out.count("FAILED") == 2
    assert "2 checks failed; nothing is timed" in caught.err


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


def test_the_recorded_baseline_follows_this_runs_cudnn() -> None:
    assert recorded.fastest_dense(32768, recorded.CUDNN[32768]) == recorded.FLASH_ATTENTION_3[32768]
    assert recorded.fastest_dense(32768, 2 * recorded.CUDNN[32768]) == 2 * recorded.FLASH_ATTENTION_3[32768]
    assert recorded.fastest_dense(1000, 1.0) is None
