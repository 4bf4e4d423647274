"""The benchmark of whole workers: what it measures, and when it shows nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from sparsity.errors import ConfigurationError
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_quality.serving import __main__ as serving
from sparsity_quality.serving import smoke, verdict
from sparsity_quality.serving.measure import Measured, measure
from sparsity_quality.serving.plan import DRY, REAL
from sparsity_quality.serving.shapes import LLAMA_8B, TINY, write_model
from sparsity_quality.serving.worker import Taken
from sparsity_worker.config import ModelFacts
from sparsity_worker.profile import load_profile

PLAN = replace(DRY, prompts=(100, 2000), load=5, rate=1e6)


class Fake:
    """A worker that takes no time, and says that long prompts were pruned."""

    def __init__(self, tier: str, *, pruned: float = 0.3, token: int = 7) -> None:
        self.tier, self.pruned, self.token = tier, pruned, token
        self.asked: list[tuple[int, int]] = []

    async def capabilities(self) -> worker_pb2.GetCapabilitiesResponse:
        sparse = self.tier != "dense"
        return worker_pb2.GetCapabilitiesResponse(
            backend="sparsity" if sparse else "torch_native",
            vocabulary_size=260,
            proof=worker_pb2.BackendProof(sparse_kernel_calls=5 if sparse else 0),
        )

    async def ask(self, prompt: list[int], new: int) -> Taken:
        self.asked.append((len(prompt), new))
        long = self.tier != "dense" and len(prompt) >= 256
        report = inference_pb2.SparsityReport(prefill_density=1.0, decode_density=1.0)
        if long:
            report.prefill_density, report.sparse_kernel_calls = self.pruned, 4
        first = len(prompt) * (1e-3 if not long else 5e-4)
        return Taken(first, first + 0.01 * (new - 1), (self.token,) * new, report)


def run(*fakes: Fake) -> dict[str, Measured]:
    return {fake.tier: asyncio.run(measure(cast(Any, fake), PLAN)) for fake in fakes}


def test_every_tier_is_asked_the_same_and_stands_beside_dense() -> None:
    dense, sparse = Fake("dense"), Fake("aggressive")
    found = run(dense, sparse)
    assert dense.asked == sparse.asked
    assert {length for length, _ in dense.asked} == {100, 2000, PLAN.context, *PLAN.load_lengths}
    assert not verdict.faults(found, PLAN)
    rows = {(row.name, row.shape): row for row in verdict.rows(found, PLAN)}
    first = rows["aggressive: time to first token", "tiny, 2000 tokens, density 0.300"]
    assert (first.baseline, first.ratio) == ("dense, torch_native", pytest.approx(2.0))
    short = rows["aggressive: time to first token", "tiny, 100 tokens, density 1.000"]
    assert (short.goal, short.met) == (">= 0.98 times", True)
    token = rows["dense: time per output token", f"tiny, 2 x {PLAN.context} tokens, density 1.000"]
    assert token.value == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("broken", "words"),
    [(Fake("aggressive", pruned=1.0), "were attended whole"), (Fake("aggressive", token=8), "only 0 get dense")],
)
def test_what_proves_nothing_is_not_shown(
    broken: Fake, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(Fake("dense"), broken)
    assert serving.judge(found, PLAN, tmp_path, "a device", dry=False) == 1
    caught = capsys.readouterr()
    assert words in caught.err
    assert "times" not in caught.out
    assert not list(tmp_path.iterdir())


def test_the_backend_must_have_proved_itself() -> None:
    found = run(Fake("dense"), Fake("moderate"))
    found["moderate"].own.backend = "triton"
    (fault,) = verdict.faults(found, PLAN)
    assert fault == "moderate: the backend triton proved nothing at start"


def test_a_run_writes_its_file_and_a_dry_one_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(Fake("dense"), Fake("moderate"), Fake("aggressive"))
    assert serving.judge(found, PLAN, tmp_path, "a device", dry=True) == 0
    assert "mean nothing" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert serving.judge(found, PLAN, tmp_path, "a device", dry=False) == 0
    document = json.loads((tmp_path / "serving.json").read_text())
    assert document["header"]["device"] == "a device"
    assert {row["met"] for row in document["rows"] if row["goal"]} <= {True, False}


def test_a_smoke_run_says_what_is_wrong_and_shows_the_log_of_a_worker_that_died(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Started(Fake):
        def __init__(self, tier: str, model: Path, log: Path, options: list[str]) -> None:
            super().__init__(tier, token=0)
            self.log = log
            assert "--profile" in options

        async def __aenter__(self) -> Fake:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        def told(self, lines: int) -> list[str]:
            return ["Failed to apply hooks"]

    class Dead(Started):
        async def __aenter__(self) -> Fake:
            self.log.write_text("many lines\nTypeError: 'NoneType' object is not iterable\n")
            raise ConfigurationError("the aggressive worker did not start")

    monkeypatch.setattr(smoke, "Worker", Started)
    assert smoke.main(["--dry", "--lengths", "100,2000"]) == 1
    caught = capsys.readouterr()
    assert "Failed to apply hooks" in caught.err
    assert "no kernel call" not in caught.err
    assert smoke.main(["--dry", "--lengths", "100"]) == 1
    assert "100 tokens: no kernel call was sparse" in capsys.readouterr().err
    monkeypatch.setattr(smoke, "Worker", Dead)
    assert smoke.main(["--dry"]) == 2
    caught = capsys.readouterr()
    assert "NoneType" in caught.out
    assert "did not start" in caught.err


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main([]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


def test_models_and_profiles_are_what_workers_read(tmp_path: Path) -> None:
    for config in (LLAMA_8B, TINY):
        facts = ModelFacts.read(write_model(tmp_path / str(config["hidden_size"]), config))
        assert facts.context_length == config["max_position_embeddings"]
    for plan in (REAL, DRY):
        for tier in ("moderate", "aggressive"):
            profile = load_profile(str(plan.profile(tier, tmp_path)))
            assert profile.tier == tier
            assert profile.prefill.sparse_from <= max(plan.prompts)
