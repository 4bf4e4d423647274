"""The benchmark of whole workers: what it measures, and when it shows nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_bench.serving import __main__ as serving
from sparsity_bench.serving import baseline, smoke, together, verdict
from sparsity_bench.serving.loads import repeats, soak
from sparsity_bench.serving.measure import measure
from sparsity_bench.serving.measured import Measured, read_all
from sparsity_bench.serving.plan import DRY, LARGE, REAL, Plan
from sparsity_bench.serving.shapes import LLAMA_8B, TINY, write_model
from sparsity_bench.serving.worker import Taken
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.config import ModelFacts
from sparsity_worker.profiles.profile import load_profile

LOADS = ["mixed load", "load of three tiers"]
PLAN = replace(DRY, prompts=(100, 2000), load=5, rate=1e6, repeats=3)


class Fake:
    """A worker that takes no time, and says that long prompts were pruned."""

    def __init__(self, tier: str, *, pruned: float = 0.3, token: int = 7, wavers: bool = False) -> None:
        self.tier, self.pruned, self.token, self.started = tier, pruned, token, 10.0
        self.wavers, self.behind = wavers, (0, 0)
        self.asked: list[tuple[int, int, str | None]] = []
        self.left: list[tuple[int, float, str]] = []
        self.sampled: list[inference_pb2.SamplingParams] = []
        self.late: list[str] = []
        self.wanted: list[str | None] = []
        self.at: str | None = None

    @property
    def tiers(self) -> list[str]:
        return self.tier.split(",")

    async def capabilities(self) -> worker_pb2.GetCapabilitiesResponse:
        sparse = self.tier != "dense"
        return worker_pb2.GetCapabilitiesResponse(
            backend="sparsity" if sparse else "torch_native",
            vocabulary_size=260,
            max_requests=4,
            proof=worker_pb2.BackendProof(sparse_kernel_calls=5 if sparse else 0),
            tiers=[
                worker_pb2.TierCapabilities(
                    tier=inference_pb2.Tier.Value(f"TIER_{tier.upper()}"),
                    proof=worker_pb2.BackendProof(sparse_kernel_calls=0 if tier == "dense" else 5),
                )
                for tier in self.tiers
            ],
        )

    async def ask(
        self,
        prompt: list[int],
        new: int,
        salt: str | None = None,
        sampling: inference_pb2.SamplingParams | None = None,
        tier: str | None = None,
    ) -> Taken:
        self.asked.append((len(prompt), new, salt))
        self.wanted.append(tier)
        if sampling is not None:
            self.sampled.append(sampling)
        long = (tier or self.at or self.tier) != "dense" and len(prompt) >= 256
        report = inference_pb2.SparsityReport(prefill_density=1.0, decode_density=1.0)
        if long:
            report.prefill_density, report.sparse_kernel_calls = self.pruned, 4
        first = len(prompt) * (1e-3 if not long else 5e-4)
        token = len(self.asked) if self.wavers and len(prompt) > 200 else self.token
        return Taken(first, first + 0.01 * (new - 1), (token,) * new, report)

    def compiled(self) -> list[str]:
        return self.late

    async def held(self) -> tuple[int, int]:
        return self.behind

    async def ask_and_leave(self, prompt: list[int], seconds: float, salt: str, tier: str | None = None) -> None:
        self.left.append((len(prompt), seconds, salt))
        self.wanted.append(tier)


def run(*fakes: Fake, plan: Plan = PLAN) -> dict[str, Measured]:
    return {fake.tier: asyncio.run(measure(cast(Any, fake), plan, lambda found: None)) for fake in fakes}


def kept(folder: Path, *fakes: Fake, **head: Any) -> Path:
    for found in run(*fakes).values():
        found.head = {"device": "a device", **head}
        found.write(folder)
    return folder


def test_every_tier_is_asked_the_same_and_stands_beside_dense() -> None:
    dense, sparse = Fake("dense"), Fake("aggressive")
    found = run(dense, sparse)
    assert [asked[:2] for asked in dense.asked] == [asked[:2] for asked in sparse.asked]
    lengths = {length for length, _, _ in dense.asked}
    assert lengths == {100, 2000, 512, *PLAN.load_lengths, *PLAN.repeated, PLAN.interrupted}
    assert not verdict.faults(found)
    rows = {(row.name, row.shape): row for row in verdict.rows(found, PLAN)}
    first = rows["aggressive: time to first token", "tiny, 2000 tokens, density 0.300"]
    assert (first.baseline, first.ratio) == ("dense, torch_native", pytest.approx(2.0))
    short = rows["aggressive: time to first token", "tiny, 100 tokens, density 1.000"]
    assert (short.goal, short.met) == (">= 0.98 times", True)
    token = rows["dense: time per output token", "tiny, 2 x 512 tokens, density 1.000"]
    assert token.value == pytest.approx(0.01)
    load = next(row for row in rows.values() if row.name == "aggressive: throughput of a mixed load")
    assert load.goal == ">= 1.4 times"
    assert load.ratio == pytest.approx(found["aggressive"].throughput / found["dense"].throughput)  # type: ignore[operator]


def test_sequences_decode_from_the_prefix_cache_so_that_none_waits_for_anothers_prompt() -> None:
    fake = Fake("aggressive")
    run(fake)
    salted = [asked for asked in fake.asked if asked[2] == "2 x 512"]
    assert salted == [(512, 2, "2 x 512")] * 2 + [(512, PLAN.new, "2 x 512")] * 2 * PLAN.repeats


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    (found,) = run(Fake("dense"), plan=replace(PLAN, seconds=0.0)).values()
    assert found.left_out == ["100 tokens", "2000 tokens", "decode of 1 x 512", "decode of 2 x 512", *LOADS]
    assert len(found.answers) == PLAN.answers
    found.write(tmp_path)
    assert read_all(tmp_path) == {"dense": found}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Fake("aggressive", pruned=1.0), "were attended whole"),
        (Fake("aggressive", token=8), "only 0 get dense"),
        (Fake("aggressive", wavers=True), "of 6 answers to prompts alone again only 0 are alike"),
    ],
)
def test_what_proves_nothing_is_not_shown(
    broken: Fake, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path / "serving", Fake("dense"), broken)
    assert serving.judge(tmp_path, PLAN, dry=False) == 1
    caught = capsys.readouterr()
    assert words in caught.err
    assert "times dense" not in caught.out
    assert not (tmp_path / "serving.json").exists()


def test_an_answer_that_others_or_an_abort_change_is_a_fault() -> None:
    class Swayed(Fake):
        """Answers otherwise once a prompt was broken off."""

        async def ask(self, prompt: list[int], new: int, salt: str | None = None, *more: Any, **named: Any) -> Taken:
            taken = await super().ask(prompt, new, salt, *more, **named)
            return taken._replace(answer=(9,) * new) if salt else taken

    fake = Swayed("moderate")
    found = asyncio.run(repeats.repeated(cast(Any, fake), PLAN, 260))
    assert found == repeats.Repeats(6, 6, 9, 9, 0, 2, 0.0, 9, 0)
    assert found.faults("cuda") == ["of 2 answers after an abort only 0 are those of the prompt alone"]
    assert found._replace(aborted=2, among=8, apart=0.1).faults("cuda") == [
        "of 9 answers among others only 8 are those of the prompt alone",
        "densities among others differ by 0.1000 from those alone",
    ]
    cold = PLAN.interrupted * 5e-4
    assert [(length, seconds / cold) for length, seconds, _ in fake.left] == [
        (PLAN.interrupted, pytest.approx(part)) for part in (0.3, 0.6)
    ]  # fmt: skip


def test_what_a_storm_leaves_behind_or_answers_badly_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "_IDLE_SECONDS", 0.0)

    class Short(Fake):
        async def ask(self, *asked: Any, **more: Any) -> Taken:
            taken, (_, new) = await super().ask(*asked, **more), asked
            return taken._replace(answer=taken.answer[:1] if new == 64 else taken.answer)

    good, bad = Fake("dense"), Short("dense")
    assert not asyncio.run(soak.faults(cast(Any, good), PLAN, 260, 300))
    assert len(good.asked) + len(good.left) == 300
    assert 40 < len(good.left) < 80
    assert max(length for length, _, _ in good.asked) > PLAN.interrupted / 2
    bad.behind = (1, 64)
    found = asyncio.run(soak.faults(cast(Any, bad), PLAN, 260, 300))
    assert found[-1] == "1 requests and 64 tokens of the KV cache were left behind"
    assert found[:-1]
    assert all(fault.endswith("1 of 64 tokens came") for fault in found[:-1])
    # Layers that were not called for each token.
    sparse = Fake("aggressive")
    report = inference_pb2.SparsityReport(prefill_density=0.5, decode_density=0.5, kernel_calls=3)
    report.layers.add()
    monkeypatch.setattr(sparse, "ask", lambda prompt, new, tier: _taken(new, report))
    assert any(
        "3 kernel calls in 1 layers" in fault for fault in asyncio.run(soak.faults(cast(Any, sparse), PLAN, 260, 9))
    )


def test_requests_of_a_storm_are_of_all_tiers_and_a_dense_one_that_was_pruned_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake("dense,aggressive")
    assert not asyncio.run(soak.faults(cast(Any, fake), PLAN, 260, 300))
    assert 100 < fake.wanted.count("dense") < 200
    assert fake.wanted.count("dense") + fake.wanted.count("aggressive") == 300
    dense, aggressive = (fake.wanted.count(tier) for tier in fake.tiers)
    assert f"({dense} dense, {aggressive} aggressive)" in capsys.readouterr().out
    pruned = inference_pb2.SparsityReport(prefill_density=0.5, decode_density=1.0, sparse_kernel_calls=4)
    monkeypatch.setattr(fake, "ask", lambda prompt, new, tier: _taken(new, pruned))
    found = asyncio.run(soak.faults(cast(Any, fake), PLAN, 260, 30))
    assert found
    assert all("a dense request was pruned" in fault for fault in found)


def test_answers_that_differ_after_the_first_token_are_rows_of_their_own() -> None:
    found = run(Fake("dense"), Fake("aggressive"))
    own = found["aggressive"].repeats
    assert own is not None
    found["aggressive"].repeats = own._replace(among_whole=own.among - 3)
    rows = {row.name: row for row in verdict.rows(found, PLAN)}
    assert rows["aggressive: first token alike, among the others"].met
    whole = rows["aggressive: all tokens alike, among the others"]
    assert (whole.value, whole.met, whole.goal) == (pytest.approx((own.among - 3) / own.among_of), False, "1")
    assert rows["aggressive: all tokens alike, after an abort"].met
    # Of a run that did not look there is no such row.
    found["aggressive"].repeats = own._replace(among_whole=None, aborted_whole=None)
    assert not [row for row in verdict.rows(found, PLAN) if row.name.startswith("aggressive: all tokens")]


def test_the_plan_reaches_the_models_context_and_short_decodes() -> None:
    fits = [prompt for prompt in REAL.prompts if prompt + REAL.new <= REAL.config["max_position_embeddings"]]
    assert fits == list(REAL.prompts)
    assert max(REAL.prompts) + 2 * REAL.new >= REAL.config["max_position_embeddings"] - 128
    assert {str(each) for each in REAL.decodes} >= {"1 x 4096", "8 x 4096", "1 x 8192", "8 x 8192"}
    assert {length for length, goal in REAL.goals.first["dense-ours"].items() if goal > 1} == {
        length for length in REAL.prompts if length >= 32768
    }


def test_no_more_is_sent_than_there_is_time_for(capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake("dense")
    assert not asyncio.run(soak.faults(cast(Any, fake), PLAN, 260, 300, seconds=-1.0))
    assert not fake.asked
    assert capsys.readouterr().out == "  0 of 300 mixed requests (0 dense), 0 of them cancelled\n"


def test_our_kernels_stand_beside_dense_and_accounts_beside_none() -> None:
    found = run(Fake("dense"), Fake("aggressive"))
    found |= {"dense-ours": replace(run(Fake("dense"))["dense"], tier="dense-ours")}
    (off,) = run(Fake("aggressive"), plan=baseline.narrowed(PLAN, "aggressive-unaccounted")).values()
    found |= {"aggressive-unaccounted": replace(off, tier="aggressive-unaccounted")}
    assert not off.answers
    assert off.repeats is None
    assert verdict.faults(found) == ["dense-ours: the backend torch_native proved nothing at start"]
    found["dense-ours"].own["backend"] = "sparsity_dense"
    assert not verdict.faults(found)
    found["aggressive"].per_token["2 x 512"] = [0.0102]
    found["aggressive"].compiled = ["sparse_kernels.kernel was compiled"]
    rows = {row.name: row for row in verdict.rows(found, PLAN)}
    share = rows["aggressive: accounts, of the time of a decode step"]
    assert (share.value, share.met) == (pytest.approx(0.0196, abs=1e-4), False)
    assert rows["aggressive: accounts, of the time of a prompt"].met
    assert rows["dense-ours: time per output token"].ratio == pytest.approx(1.0)
    assert rows["aggressive: kernels compiled while serving"].met is False
    assert rows["dense-ours: kernels compiled while serving"].met is True
    assert rows["aggressive: tokens and densities alike, alone again"].met


def test_tiers_of_one_worker_are_measured_alone_and_then_under_a_load_of_all(tmp_path: Path) -> None:
    fake, wholly = Fake("dense,moderate,aggressive"), Fake("dense")
    kept(tmp_path, wholly)

    def keep(of: str) -> Callable[[Measured], None]:
        return lambda found: replace(found, tier=of, head={"device": "a device"}).write(tmp_path)

    asyncio.run(serving.shared(cast(Any, fake), PLAN, keep))
    loaded = fake.wanted[-PLAN.tiers_load :]
    assert sorted(str(tier) for tier in loaded) == sorted(["dense", "moderate", "aggressive"] * (PLAN.tiers_load // 3))
    of_load = [(length, new) for length, new, _ in fake.asked[-PLAN.tiers_load :]]
    assert of_load == [(length, new) for length, new, _ in wholly.asked[-PLAN.tiers_load :]]
    found = read_all(tmp_path)
    assert set(found) == {"dense", "shared", "shared-dense", "shared-moderate", "shared-aggressive"}
    assert not verdict.faults(found)
    rows = {row.name: row for row in verdict.rows(found, PLAN)}
    assert rows["shared: throughput of a load of three tiers"].goal == ">= 1.3 times"
    of_dense = rows["shared: time to first token of dense requests, median"]
    assert (of_dense.ratio, of_dense.goal) == (pytest.approx(1.0, abs=0.01), ">= 0.95 times")
    assert rows["shared: time to first token of moderate requests, median"].goal is None
    assert "shared-dense: start to serving" not in rows
    found["shared-moderate"].own["sparse_calls"] = 0
    assert verdict.faults(found) == ["shared-moderate: the backend sparsity proved nothing at start"]


def test_several_ranks_stand_beside_one_in_a_file_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PLAN.by_ranks(2)
    assert plan.options == (*PLAN.options, "--tensor-parallel", "2")
    assert LARGE.by_ranks(2).options.count("--tensor-parallel") == 1
    assert [serving.result_of(each) for each in (REAL, REAL.by_ranks(2), LARGE, LARGE.by_ranks(2))] == [
        "serving", "serving-tp2", "serving-70b", "serving-70b-tp2",
    ]  # fmt: skip
    one, several = tmp_path / "one", tmp_path / serving.result_of(plan)
    for fake in (Fake("dense"), Fake("aggressive")):
        kept(one, fake)
        kept(several, fake, ranks=2)
    with_rows = {row.name: row for row in verdict.beside_one_rank(read_all(several), read_all(one), plan)}
    assert with_rows["aggressive: time per output token, beside one rank"].baseline == "one rank"
    assert serving.judge(tmp_path, plan, dry=False, beside=one) == 0
    rows = {row["name"] for row in json.loads((tmp_path / "serving-tp2.json").read_text())["rows"]}
    assert {"dense: time to first token, beside one rank", "aggressive: time to first token"} <= rows
    kept(several, Fake("aggressive"), ranks=1)
    capsys.readouterr()
    assert serving.judge(tmp_path, plan, dry=False) == 1
    assert "by other ranks" in capsys.readouterr().err


class Standing(Fake):
    """A worker that is there at once."""

    there: ClassVar[list[Standing]] = []

    def __init__(self, tier: str, _model: Path, _log: Path, options: list[str], *_: Any) -> None:
        super().__init__(tier)
        self.options = options
        self.there.append(self)

    async def __aenter__(self) -> Standing:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.there.remove(self)


def test_workers_that_stand_together_are_measured_in_turn_and_what_is_close_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "Worker", Standing)
    keep = serving.keeping(tmp_path, {"device": "a device"})
    asyncio.run(together.measured_together(together.beside(PLAN), ["dense", "shared"], tmp_path, keep))
    found = read_all(tmp_path)
    assert set(found) == {"dense", "shared", "shared-dense", "shared-moderate", "shared-aggressive"}
    assert not verdict.faults(found)
    once = run(Fake("dense"))["dense"].first
    for name, own in found.items():
        assert own.start == 0.0
        if name != "shared":
            assert {length: len(own.first[length]) for length in once} == {
                length: 2 * len(times) for length, times in once.items()
            }
    rows = {row.name for row in verdict.rows(found, PLAN)}
    assert "shared: throughput of a load of three tiers" in rows
    for tier in ("shared-dense", "shared-moderate", "shared-aggressive"):
        assert {f"{tier}: all tokens alike, {when}" for when in ("among the others", "after an abort")} <= rows
    assert not {name for name in rows if "start to serving" in name}
    asyncio.run(
        together.measured_together(together.beside(PLAN), ["aggressive", "aggressive-unaccounted"], tmp_path, keep)
    )
    found = read_all(tmp_path)
    for name in ("aggressive", "aggressive-unaccounted"):
        assert {batch: len(times) for batch, times in found[name].per_token.items()} == {"2 x 512": 11 * PLAN.repeats}
    rows = {row.name for row in verdict.rows(found, PLAN)}
    assert "aggressive: accounts, of the time of a decode step" in rows


def test_three_workers_share_the_device_under_the_load_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Fake] = {}

    class Third(Fake):
        def __init__(self, tier: str, _model: Path, _log: Path, options: list[str], *_: Any) -> None:
            super().__init__(tier)
            self.options, self.ended = options, False
            started[tier] = self

        async def __aenter__(self) -> Third:
            return self

        async def __aexit__(self, *_: Any) -> None:
            self.ended = True

    monkeypatch.setattr(serving, "Worker", Third)
    plan = replace(PLAN, options=("--max-total-tokens", "9000", "--max-requests", "30", "--dtype", "float32"))
    kept(tmp_path / "serving", Fake("dense"))
    asyncio.run(serving.measured(plan, "thirds", tmp_path, serving.keeping(tmp_path, {"device": "a device"})))
    for tier, worker in started.items():
        assert list(worker.options[:6]) == ["--max-total-tokens", "3000", "--max-requests", "10", "--dtype", "float32"]
        assert worker.ended  # type: ignore[attr-defined]
        assert len(worker.asked) == PLAN.tiers_load // 3
        assert ("--profile" in worker.options) == (tier != "dense")
    found = read_all(tmp_path)
    assert not verdict.faults(found)
    thirds = found["thirds"]
    assert thirds.tiers_throughput
    found["shared"] = replace(thirds, tier="shared", start=10.0, tiers_throughput=3 * thirds.tiers_throughput)
    rows = {row.name: row for row in verdict.rows(found, PLAN)}
    more = rows["shared: throughput of a load of three tiers, beside workers of one"]
    assert (more.ratio, more.goal, more.met) == (pytest.approx(3.0), ">= 2 times", True)
    sooner = rows["shared: time to first token of all requests, median, beside workers of one"]
    assert (sooner.ratio, sooner.met) == (pytest.approx(1.0), False)
    assert rows["thirds: throughput of a load of three tiers"].goal is None
    assert "thirds: start to serving" not in rows


async def _taken(new: int, report: inference_pb2.SparsityReport) -> Taken:
    return Taken(0.1, 0.2, (7,) * new, report)


def test_the_backend_must_have_proved_itself_beside_a_dense_tier_of_the_same_device() -> None:
    found = run(Fake("dense"), Fake("moderate"))
    found["moderate"].own["backend"] = "triton"
    (fault,) = verdict.faults(found)
    assert fault == "moderate: the backend triton proved nothing at start"
    found["moderate"].own["backend"], found["moderate"].head = "sparsity", {"device": "another"}
    (fault,) = verdict.faults(found)
    assert "another device" in fault
    del found["dense"]
    assert verdict.faults(found) == ["dense: was not measured; nothing stands beside the other tiers"]


def test_tiers_of_several_runs_make_one_file_and_a_dry_run_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path / "serving" / "first", Fake("dense"))
    assert serving.main(["--merge", "--dry", "--out", str(tmp_path)]) == 0
    kept(tmp_path / "serving" / "second", Fake("moderate"), Fake("aggressive"))
    assert serving.main(["--merge", "--dry", "--out", str(tmp_path)]) == 0
    assert "mean nothing" in capsys.readouterr().out
    assert not (tmp_path / "serving.json").exists()
    assert serving.main(["--merge", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "serving.json").read_text())
    assert document["header"]["device"] == "a device"
    assert {row["name"].partition(":")[0] for row in document["rows"]} == {"dense", "moderate", "aggressive"}
    assert {row["met"] for row in document["rows"] if row["goal"]} <= {True, False}


def test_a_tier_is_tuned_by_the_profile_and_the_chunks_that_it_is_measured_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], stdout: object) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=len(ran) - 1)

    monkeypatch.setattr(serving.subprocess, "run", run)
    serving.tune(REAL, "moderate", tmp_path / "model", tmp_path)
    words = dict(zip(ran[0][3::2], ran[0][4::2], strict=True))
    assert words["--chunked-prefill-tokens"] == "16384"
    assert load_profile(words["--profile"]).label == "serving-moderate@1"
    with pytest.raises(ConfigurationError, match="moderate: could not be tuned"):
        serving.tune(REAL, "moderate", tmp_path / "model", tmp_path)


def test_the_dense_tier_takes_the_best_backend_that_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = {"nvidia-cutlass-dsl"}

    def version(name: str) -> str:
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return "4.8.0"

    monkeypatch.setattr(baseline.metadata, "version", version)
    monkeypatch.setattr(baseline.importlib.util, "find_spec", lambda name: None)
    assert list(baseline.present(REAL.dense_backends)) == ["fa4", "triton"]
    assert list(baseline.starts(REAL, "dense", tmp_path)) == [("--dense-backend", "fa4"), ("--dense-backend", "triton")]
    here.clear()
    assert list(baseline.present(REAL.dense_backends)) == ["triton"]
    assert list(baseline.starts(DRY, "dense", tmp_path)) == [()]
    ((option, profile),) = baseline.starts(REAL, "moderate", tmp_path)
    assert option == "--profile"
    assert load_profile(profile).tier == "moderate"


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
            assert [(each.top_k, each.seed) for each in self.sampled[::3]] == [(2**31 - 1, 0), (0, 2**64 - 1)]
            return ["Failed to apply hooks"]

    class Shared(Started):
        def __init__(self, tier: str, model: Path, log: Path, options: list[str]) -> None:
            assert (tier, options.count("--profile")) == ("dense,moderate,aggressive", 2)
            super().__init__(tier, model, log, options)
            self.places = asyncio.Semaphore(4)

        async def ask(self, *asked: Any, **more: Any) -> Taken:
            assert not self.places.locked(), "it was asked for more than it takes"
            async with self.places:
                await asyncio.sleep(0)
                return await super().ask(*asked, **more)

        def told(self, lines: int) -> list[str]:
            assert self.wanted[:4] == ["dense", "dense", "moderate", "moderate"]
            return []

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
    monkeypatch.setattr(smoke, "Worker", Shared)
    assert smoke.main(["--dry", "--tier", "shared", "--lengths", "100,2000"]) == 0
    monkeypatch.setattr(smoke, "Worker", Dead)
    assert smoke.main(["--dry"]) == 2
    caught = capsys.readouterr()
    assert "NoneType" in caught.out
    assert "did not start" in caught.err


def test_workers_in_thirds_stand_together_with_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--dry", "--together", "dense", "thirds"])
    assert "--together: thirds are three workers already; name them alone" in capsys.readouterr().err


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
