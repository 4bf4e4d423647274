"""From where sparse attention is faster: what follows from timings, how it is kept and applied, and the timing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.benchmark import header
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.profiles.profile import Profile, load_profile, parse_profile
from sparsity_worker.tune import __main__ as command
from sparsity_worker.tune import crossover, dense
from sparsity_worker.tune.crossover import NEVER, Crossover, Heads, Timing, check_model, find, shortest, tuned
from sparsity_worker.tune.dense import dense_tier, ours_is_fastest
from support.tiny import tiny_model
from support.workers.engine import profile_document

HEADS = Heads(4, 2, 16)


def timing(length: int, sparse: float, dense: float, phase: str = "prefill", batch: int = 1) -> Timing:
    return Timing(phase, batch, length, sparse, dense, None, 0.5)


def measured(profile: Profile, device: str = "NVIDIA H200") -> Crossover:
    timings = [
        timing(1024, 2.0, 1.0), timing(8192, 1.0, 2.0), timing(16384, 1.0, 4.0),
        timing(1024, 2.0, 1.0, "decode"), timing(8192, 2.0, 2.0, "decode"),
        timing(1024, 2.0, 1.0, "decode", 8), timing(8192, 1.0, 2.0, "decode", 8),
    ]  # fmt: skip
    return Crossover.of(profile.label, device, HEADS, "bfloat16", "2026-11-29", timings)


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([], NEVER),
        ([(1.0, 1.0), (1.0, 1.0)], NEVER),
        ([(0.5, 1.0), (0.5, 1.0)], 1024),
        # A length that is not faster counts, whatever shorter ones were; so does one that is faster by chance only.
        ([(0.5, 1.0), (1.1, 1.0), (0.5, 1.0), (0.5, 1.0)], 4096),
        ([(2.0, 1.0), (0.99, 1.0), (0.5, 1.0)], 4096),
    ],
)
def test_sparse_is_faster_from_the_shortest_length_from_which_on_it_always_was(
    pairs: list[tuple[float, float]], found: int
) -> None:
    assert shortest(timing(1024 << at, *pair) for at, pair in enumerate(pairs)) == found


def test_a_profile_is_sparse_from_where_both_say_so() -> None:
    profile = parse_profile(profile_document(), "test")
    found = measured(profile)
    assert (found.prefill_from, found.decode_from) == (8192, {1: NEVER, 8: 8192})
    applied = found.apply(profile)
    assert applied.sparse_from == 8192
    assert applied.decode_from == {1: NEVER, 8: 8192}
    later = replace(profile, prefill=replace(profile.prefill, sparse_from=9000))
    assert found.apply(later).sparse_from == 9000
    # Through the model config, which is JSON.
    assert parse_profile(json.loads(json.dumps(applied.to_document())), "again") == applied
    for wrong in ([1], {"one": 2}, {1: "x"}, {1: -1}, {1: True}):
        with pytest.raises(ConfigurationError, match="test: decode_from"):
            parse_profile(profile.to_document() | {"decode_from": wrong}, "test")


def test_workers_take_what_was_measured_on_their_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "device_name", lambda: "NVIDIA H200")
    profile = load_profile("generic-aggressive")
    model = tiny_model(tmp_path)
    heads = Heads.read(model)
    assert Heads.read(model, 2) == Heads(heads.heads // 2, max(1, heads.kv_heads // 2), heads.dim)
    config = WorkerConfig("w", ("aggressive",), model, profiles=("x",), device="cuda", state_folder=tmp_path / "kept")
    assert tuned(profile, config) == (profile, "not measured on this device; run `sparsity worker tune`")
    assert tuned(None, config) == (None, "")
    assert tuned(profile, replace(config, device="cpu")) == (profile, "")
    elsewhere = replace(measured(profile, "NVIDIA H100"), heads=heads)
    elsewhere.write(config.state_folder)
    assert tuned(profile, config)[0] == profile
    own = replace(measured(profile), heads=heads)
    path = own.write(config.state_folder)
    assert Crossover.read(path) == own
    applied, told = tuned(profile, config)
    assert applied == own.apply(profile)
    assert "decode of 1 at once at no length, 8 at once from 8192 tokens" in told
    assert "measured on 2026-11-29 on NVIDIA H200" in told
    other = replace(own, versions=own.versions | {"triton": "1.0"})
    other.write(config.state_folder)
    assert tuned(profile, config) == (
        profile, "measured on 2026-11-29 with other versions; run `sparsity worker tune` again",
    )  # fmt: skip
    for broken in ("{", "[]", json.dumps({"schema": "else"})):
        path.write_text(broken)
        with pytest.raises(ConfigurationError, match="is no crossover"):
            tuned(profile, config)


def test_what_another_version_of_the_worker_measured_is_stale_where_no_router_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile("generic-aggressive")
    own = measured(profile)
    own.write(tmp_path)
    kept = (tmp_path, profile.label, own.device, HEADS, own.dtype)
    assert find(*kept)[0] == own
    other = tmp_path / "site" / "sparsity_worker-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: sparsity-worker\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(str(other.parent))
    assert find(*kept) == (None, "measured on 2026-11-29 with other versions; run `sparsity worker tune` again")
    # Result files tell it, too.
    versions = header("sparsity quality", {})["versions"]
    assert isinstance(versions, dict)
    assert versions["sparsity-worker"] == "9.9.9"


def beside(length: int, ours: float, theirs: float | None, phase: str = "prefill") -> Timing:
    return Timing(phase, 1, length, 0.1, ours, None, 0.5, theirs)


@pytest.mark.parametrize(
    ("timings", "ours"),
    [
        ([beside(1024, 1.01, 1.0), beside(8192, 0.9, 1.0), beside(8192, 1.0, 1.0, "decode")], True),
        # Slower at one length; no faster on long prompts; decode not timed; none of theirs here.
        ([beside(1024, 1.1, 1.0), beside(8192, 0.9, 1.0), beside(8192, 1.0, 1.0, "decode")], False),
        ([beside(1024, 0.9, 1.0), beside(8192, 1.0, 1.0), beside(8192, 1.0, 1.0, "decode")], False),
        ([beside(1024, 0.9, 1.0), beside(8192, 0.9, 1.0)], False),
        ([beside(8192, 0.9, None), beside(8192, 0.9, None, "decode")], False),
    ],
)
def test_the_dense_tier_is_ours_where_it_is_nowhere_slower(timings: list[Timing], ours: bool) -> None:
    assert ours_is_fastest(timings) is ours


def test_a_dense_worker_takes_what_any_tier_found_fastest_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "device_name", lambda: "NVIDIA H200")
    model = tiny_model(tmp_path)
    facts, heads = ModelFacts.read(model), Heads.read(model)
    config = WorkerConfig("w", ("dense",), model, device="cuda", state_folder=tmp_path / "kept")
    assert dense_tier(config, facts) == (config, "")
    timings = [beside(8192, 0.9, 1.0), beside(8192, 1.0, 1.0, "decode")]
    found = replace(measured(load_profile("generic-aggressive")), heads=heads, timings=tuple(timings))
    found.write(config.state_folder)
    chosen, told = dense_tier(config, facts)
    assert chosen == replace(config, dense_backend="sparsity_dense")
    assert told == "attends by our kernels, the fastest as measured on 2026-11-29 on NVIDIA H200"
    for other in (
        replace(config, device="cpu"), replace(config, dense_backend="fa3"),
        replace(config, tiers=("moderate",), profiles=("x",)),
    ):  # fmt: skip
        assert dense_tier(other, facts) == (other, "")
    assert dense_tier(config, replace(facts, latent=True)) == (config, "")
    document = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(document | {"sliding_window": 4096}))
    assert dense_tier(config, facts) == (config, "")


def test_what_there_is_nothing_to_tune_of_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(tmp_path)
    assert command.main(["--model", str(model), "--profile", "generic-aggressive"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err
    assert command.main(["--model", str(model), "--profile", "generic-aggressive", "--tensor-parallel", "0"]) == 2
    assert "--tensor-parallel: must be at least 1, not 0" in capsys.readouterr().err
    assert command.main(["--model", str(model)]) == 2
    assert "--profile: must be given" in capsys.readouterr().err
    facts = ModelFacts.read(model)
    check_model(facts, HEADS)
    with pytest.raises(ConfigurationError, match="SGLang's own kernels"):
        check_model(replace(facts, latent=True), HEADS)
    with pytest.raises(ConfigurationError, match="5 heads for 2 KV heads"):
        check_model(facts, Heads(5, 2, 16))


_MEASURED = """
import json, sys, torch
from sparsity_worker.profiles.profile import parse_profile
from sparsity_worker.tune.crossover import Crossover, Heads
from sparsity_worker.tune.layer import Layer
from sparsity_worker.tune.measure import Plan, measure, places, their_page, their_table
torch.set_num_threads(1)
profile = parse_profile(json.loads(sys.argv[1]), "test")
layer = Layer(profile, Heads(4, 2, 16), 2, 1024, 640, torch.device("cpu"), torch.float32)
plan = Plan(lengths=(256, 448), chunk=256, batches=(1, 2), tokens=1024, runs=1, calls=2)
where = {
    "places": [places(layer, *shape) for shape in ((1, 256, 3), (2, 448, 3), (1, 300, 4))],
    "tables": [their_table(layer, 2, 300, page, 320).tolist() for page in (64, 128)],
    "page": their_page(layer.keys.device, layer.page),
}
layer.fill(256)
begun = [layer.decode(1, 256, sparse=True, first=first) for first in (0, 256)]
same, other = begun[0].queries, begun[0]().clone()
where["apart"] = float((begun[1].layer.attend(begun[1].attention, same, begun[1].phase) - other).abs().max())
print(json.dumps([where, *(each._asdict() for each in measure(layer, plan))]))
"""


@pytest.mark.timeout(600)
def test_each_length_and_batch_is_timed_on_keys_that_prune() -> None:
    """In Triton's interpreter, where times mean nothing."""
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, json.dumps(profile_document())], capture_output=True, text=True, timeout=560,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    where: dict[str, Any]
    where, *found = json.loads(ran.stdout.splitlines()[-1])
    # No two batches of a graph attend the same keys while there is room for others.
    assert where["places"] == [[0, 256, 512], [0, 0, 0], [0, 320, 640, 0]]
    assert where["apart"] > 0.01
    # SGLang's is given pages as workers serve them.
    assert where["page"] == 64
    assert where["tables"][0] == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    kinds = [(each["phase"], each["batch"], each["length"]) for each in found]
    assert kinds == [("prefill", 1, 256), ("prefill", 1, 448), *(("decode", b, n) for b in (1, 2) for n in (256, 448))]
    assert all(each[name] > 0 for each in found for name in ("sparse", "dense", "sdpa"))
    # SGLang's has no kernel for CPUs.
    assert {each["theirs"] for each in found} == {None}
    density = {kind: each["density"] for kind, each in zip(kinds, found, strict=True)}
    assert density["prefill", 1, 448] < 0.9
    # Three pages of seven.
    assert density["decode", 2, 448] == pytest.approx(192 / 448)
