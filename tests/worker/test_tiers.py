"""A worker's tiers: options, what profiles may share an engine, what is told of each, and what keeps them apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.access.leases import sign
from sparsity_worker.__main__ import read_config
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.echo.model import write_echo_model
from sparsity_worker.engine.salt import cache_salt
from sparsity_worker.profiles.tier_profile import load_tier_profiles
from support.routers.rig import refusal
from support.tiny import tiny_model
from support.workers.echo_worker import KEYS, answer, echo, request
from support.workers.profiles import moderate_document, profile_document

FACTS = ModelFacts("tiny", 512, 257)
DENSE, MODERATE, AGGRESSIVE = inference_pb2.TIER_DENSE, inference_pb2.TIER_MODERATE, inference_pb2.TIER_AGGRESSIVE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_echo_model(tmp_path / "echo")


@pytest.mark.parametrize(
    ("arguments", "environment", "file"),
    [
        (("--tiers", "aggressive, dense,moderate"), {}, None),
        (("--tiers", "moderate,aggressive", "--tiers", "dense"), {}, None),
        ((), {"SPARSITY_WORKER_TIERS": "moderate,dense,aggressive"}, None),
        ((), {"SPARSITY_WORKER_TIERS": "moderate dense aggressive"}, None),
        ((), {}, {"tiers": "moderate,dense,aggressive"}),
        ((), {}, {"tiers": ["moderate", "dense", "aggressive"]}),
    ],
)
def test_tiers_are_given_as_lists_are_and_stand_densest_first(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], file: dict[str, Any] | None
) -> None:
    words = ["--worker-id", "w", "--model", str(tiny_model(tmp_path)), *arguments]
    if file is not None:
        path = tmp_path / "options.yaml"
        path.write_text(yaml.safe_dump(file))
        words += ["--config", str(path)]
    config = read_config([*words, "--profile", "a", "--profile", "b"], environment)
    assert config.tiers == ("dense", "moderate", "aggressive")
    assert (config.densest, config.sparse_tiers) == ("dense", ("moderate", "aggressive"))
    assert config.profiles == ("a", "b")


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        ((), "none is given"),
        (("",), "with commas between, not ''"),
        (("dense,",), "with commas between, not ''"),
        (("dense,sparse",), "with commas between, not 'sparse'"),
        (("dense", "moderate,dense"), "dense is given twice"),
    ],
)
def test_what_is_no_list_of_tiers_is_refused(tmp_path: Path, tiers: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--tiers: ") as error:
        WorkerConfig("w", tiers, tiny_model(tmp_path), profiles=("generic-moderate",))
    assert words in str(error.value)


def test_a_backend_of_the_dense_tier_is_for_it_alone(tmp_path: Path) -> None:
    alone = WorkerConfig("w", ("dense",), tiny_model(tmp_path), dense_backend="fa4")
    with pytest.raises(ConfigurationError, match=r"^--dense-backend: "):
        replace(alone, tiers=("dense", "moderate"), profiles=("generic-moderate",))


@pytest.mark.parametrize(
    ("tiers", "documents", "words"),
    [
        (("dense", "moderate", "aggressive"), [{}], "--profile: the moderate tier needs one"),
        (("dense", "moderate"), [{}], "tiny@1 is for the aggressive tier, which --tiers dense,moderate does not name"),
        (("aggressive",), [{}, {"name": "other"}], "tiny@1 and other@1 are both for the aggressive tier; give one"),
        (
            ("moderate", "aggressive"),
            [{}, {"name": "m", "tier": "moderate", "block_size": 128}],
            "tiny@1: block_size: 64, but tiers of one worker share pages, and m@1 has 128",
        ),
        (
            ("moderate", "aggressive"),
            [{}, {"name": "m", "tier": "moderate", "sub_block": 32}],
            "tiny@1: sub_block: 16, but tiers of one worker share pages, and m@1 has 32",
        ),
    ],
)
def test_profiles_that_cannot_share_an_engine_are_refused_by_name(
    tmp_path: Path, tiers: tuple[str, ...], documents: list[dict[str, Any]], words: str
) -> None:
    config = worker(tmp_path, tiers, [profile_document() | change for change in documents])
    with pytest.raises(ConfigurationError) as error:
        load_tier_profiles(config, FACTS)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"decode": {"score": "sub_pages"}},
            "tiny@1: decode.score: sub_pages, but tiers of one worker decode in one call on a GPU,"
            " and tiny-moderate@2 has spread",
        ),
        (
            {"prefill": {"score": "vertical_slash"}},
            "tiny@1: prefill.score: must be one of sampled_rows, sub_means, block_means on a GPU, not vertical_slash",
        ),
        ({"prefill": {"query_tile": 96}}, "tiny@1: prefill.query_tile: 96 must be a power of 2 and whole blocks"),
    ],
)
def test_what_the_kernels_cannot_attend_is_refused_by_name_before_an_engine_starts(
    tmp_path: Path, change: dict[str, dict[str, Any]], words: str
) -> None:
    on_cpu = worker(tmp_path, ("moderate", "aggressive"), [moderate_document(), profile_document(**change)])
    assert load_tier_profiles(on_cpu, FACTS).keys() == {"moderate", "aggressive"}
    with pytest.raises(ConfigurationError) as error:
        load_tier_profiles(replace(on_cpu, device="cuda"), FACTS)
    assert str(error.value).startswith(f"--profile: {words}")


def test_tokens_that_a_model_picks_are_one_number_for_an_engine(tmp_path: Path) -> None:
    picks = {"schema": "sparsity.indexer-profile/v1", "name": "d", "version": 1, "tier": "aggressive"}
    facts = replace(FACTS, index_topk=256, latent=True)
    config = replace(worker(tmp_path, ("dense", "aggressive"), [picks | {"index_topk": 128}]), device="cuda")
    with pytest.raises(ConfigurationError, match=r"--profile: d@1: index_topk is one .* \(--tiers aggressive\)"):
        load_tier_profiles(config, facts)
    assert load_tier_profiles(replace(config, tiers=("aggressive",)), facts).keys() == {"aggressive"}


def test_profiles_come_by_tier_whatever_order_they_are_given_in(tmp_path: Path) -> None:
    documents = [profile_document(), profile_document() | {"tier": "moderate", "name": "m"}]
    found = load_tier_profiles(worker(tmp_path, ("aggressive", "moderate", "dense"), documents), FACTS)
    assert [(tier, profile.label) for tier, profile in found.items()] == [("moderate", "m@1"), ("aggressive", "tiny@1")]


def worker(folder: Path, tiers: tuple[str, ...], documents: list[dict[str, Any]]) -> WorkerConfig:
    paths = []
    for number, document in enumerate(documents):
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(document))
        paths.append(str(path))
    return WorkerConfig("w", tiers, tiny_model(folder / "model"), profiles=tuple(paths))


async def test_every_tier_is_told_and_one_that_is_not_asked_for_is_the_densest(model: Path) -> None:
    async with echo(model, "aggressive,moderate") as stub:
        own = await stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest())
        assert own.tier == MODERATE
        assert [(each.tier, each.profile, each.HasField("proof")) for each in own.tiers] == [
            (MODERATE, "echo", False),
            (AGGRESSIVE, "echo", False),
        ]
        for tier in (0, MODERATE, AGGRESSIVE):
            asked = request("hi")
            asked.tier = tier
            assert (await answer(stub, asked))[0] == "echo: hi"
        asked.tier = DENSE
        refused = await refusal(answer(stub, asked))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "tier: this worker serves moderate, aggressive, not TIER_DENSE" in refused.details()


async def test_the_load_is_told_by_tier(model: Path) -> None:
    async with echo(model, "dense,moderate,aggressive") as stub:
        calls = []
        for number, tier in enumerate((0, AGGRESSIVE, AGGRESSIVE)):
            asked = request("x", tokens=500, ignore_eos=True)
            asked.request_id, asked.tier = f"r{number}", tier
            calls.append(stub.Generate(asked))
            await calls[-1].read()
        load = await stub.WatchLoad(worker_pb2.WatchLoadRequest()).read()
        told = [(each.tier, each.requests, each.outstanding_tokens) for each in load.tiers]
        assert told == [(DENSE, 1, 501), (AGGRESSIVE, 2, 1002)]
        assert (load.requests, load.outstanding_tokens) == (3, 1503)
        for call in calls:
            call.cancel()
        async for load in stub.WatchLoad(worker_pb2.WatchLoadRequest()):
            if not load.requests:
                assert not load.tiers
                break
            await asyncio.sleep(0)


async def test_a_lease_is_for_the_tier_that_it_names(model: Path) -> None:
    async with echo(model, "dense,aggressive", require_lease=True) as stub:
        for tier in (DENSE, AGGRESSIVE):
            asked = request("hi")
            asked.tier = tier
            asked.lease.CopyFrom(sign(KEYS, asked, "echo-1", "d"))
            assert (await answer(stub, asked))[0] == "echo: hi"
            # Of the same decision, for a tier that is served too.
            asked.lease.CopyFrom(sign(KEYS, asked, "echo-1", "d"))
            asked.tier = DENSE if tier == AGGRESSIVE else AGGRESSIVE
            refused = await refusal(answer(stub, asked))
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
            assert refused.details().startswith("lease: is for TIER_")


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_no_salt_of_a_caller_stands_for_another_tier(mine: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (cache_salt(*mine) == cache_salt(*other)) == (mine == other)


def test_parts_of_a_salt_do_not_run_into_each_other() -> None:
    assert cache_salt("b", "a", "c") != cache_salt("", "a", "cb") != cache_salt(None, "ac", "b")
    assert cache_salt(None, "a", "c") == cache_salt("", "a", "c")
