"""What SGLang runs otherwise than it was asked to is refused at start, by option and with the remedy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.__main__ import read_config
from sparsity_worker.config import ModelFacts
from sparsity_worker.engine.launching import engine_arguments
from sparsity_worker.engine.running import Running, check_running
from sparsity_worker.keys import RUNNING_KEY
from sparsity_worker.profiles.tier_profile import load_tier_profiles
from support.tiny import tiny_model

AS_ASKED = Running(8, 4096, 64, 512, 512, "float32", 1, ("torch_native", "torch_native"), False, {}, ())


def check(folder: Path, running: Running, *options: str) -> None:
    """Against what a worker of these options asks SGLang for."""
    given = ["--worker-id", "w", "--tiers", "dense", "--model", str(tiny_model(folder)), "--dtype", "float32"]
    given += ["--max-requests", "8", "--chunked-prefill-tokens", "512", *options]
    config = read_config(given, {})
    facts = ModelFacts.read(config.model_path)
    check_running(config, engine_arguments(config, facts, load_tier_profiles(config, facts)), running)


def test_what_runs_as_it_was_asked_to_is_served(tmp_path: Path) -> None:
    check(tmp_path, AS_ASKED)
    # Whole pages are kept of what was asked for; and what the device holds, where nothing was.
    check(tmp_path, AS_ASKED, "--max-total-tokens", "4159")
    check(tmp_path, replace(AS_ASKED, kv_tokens=64))
    # More than was asked for does no harm.
    check(tmp_path, replace(AS_ASKED, max_requests=9, context_length=1024))
    # Where SGLang chooses, its pages are what they are.
    check(tmp_path, replace(AS_ASKED, page_size=128))
    check(tmp_path, replace(AS_ASKED, backends=("fa3", "fa3")), "--dense-backend", "fa3")


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"max_requests": 5}, (), ("--max-requests: 8 were asked", "takes 5 at once", "give --max-requests 5")),
        ({}, ("--max-total-tokens", "4160"), ("--max-total-tokens: 4160 were", "holds 4096", "leave it out")),
        ({"chunk_tokens": 256}, (), ("--chunked-prefill-tokens: SGLang reads 256 at once in place of 512",)),
        ({"chunk_tokens": 0}, (), ("--chunked-prefill-tokens: SGLang reads all at once",)),
        ({"context_length": 300}, (), ("--model: SGLang serves 300 of its 512 tokens",)),
        ({"dtype": "float16"}, (), ("--dtype: SGLang computes in float16 in place of float32",)),
        ({"ranks": 2}, (), ("--tensor-parallel: SGLang has 2 ranks in place of 1",)),
        (
            {"backends": ("triton", "triton")},
            ("--dense-backend", "fa3"),
            ("--dense-backend: SGLang attends by triton in place of fa3", "name triton"),
        ),
        (
            {"backends": ("trtllm_mha", "fa3")},
            ("--dense-backend", "fa3"),
            ("attends by trtllm_mha+fa3 in place of fa3",),
        ),
        (
            {"backends": ("fa4", "fa4"), "page_size": 128},
            ("--dense-backend", "fa4"),
            ("--dense-backend: fa4 keeps pages of 128 tokens in place of 64", "leave it out"),
        ),
        ({"missing": ("sglang.some.where",)}, (), ("lacks what the plugin changes: sglang.some.where",)),
    ],
)
def test_what_runs_otherwise_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], options: Sequence[str], words: Sequence[str]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check(tmp_path, replace(AS_ASKED, **changes), *options)
    assert all(each in str(refused.value) for each in words), refused.value


def test_every_difference_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--max-requests: .*; --dtype: "):
        check(tmp_path, replace(AS_ASKED, max_requests=1, dtype="bfloat16"))


def test_an_overlap_that_is_not_there_is_only_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = read_config(["--worker-id", "w", "--tiers", "dense", "--model", str(tiny_model(tmp_path))], {})
    arguments = engine_arguments(config, ModelFacts.read(tmp_path), {}) | {"disable_overlap_schedule": False}
    running = replace(AS_ASKED, max_requests=32, chunk_tokens=8192, dtype=arguments["dtype"])
    logger = logging.getLogger("sparsity.worker")
    logger.addHandler(caplog.handler)
    check_running(config, arguments, running)
    logger.removeHandler(caplog.handler)
    assert "turned --overlap off" in caplog.text


def test_without_the_plugin_there_is_nothing_to_compare() -> None:
    assert Running.read({RUNNING_KEY: {name: getattr(AS_ASKED, name) for name in Running.__slots__}}) == AS_ASKED
    with pytest.raises(ConfigurationError, match="did not load this package's plugin"):
        Running.read({"max_total_num_tokens": 4096})
