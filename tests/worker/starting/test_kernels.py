"""Which kernels attend prompts, as facts and the log say; of devices that are not here, by what torch tells of them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sparse_kernels.gpu import checks
from sparse_kernels.gpu.hopper import gluon_module
from sparsity_worker.profiles.kernels import prefill_kernels
from sparsity_worker.profiles.profile import Profile, load_profile, parse_profile
from sparsity_worker.profiles.served_tiers import attends_everything
from support.workers.profiles import profile_document

AGGRESSIVE = load_profile("generic-aggressive")


def chosen(profiles: list[Profile], device: str, generation: int, monkeypatch: pytest.MonkeyPatch, **shape: Any) -> str:
    # It is asked for once a process.
    checks.generation.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (generation, 0))
    kept = {"page": 64, "dim": 128, "dtype": torch.bfloat16} | shape
    # No tensor can lie on a device that is not here, and only this is asked of it.
    keys: Any = SimpleNamespace(
        shape=(8, kept["page"], 2, kept["dim"]), dtype=kept["dtype"], device=torch.device(device)
    )  # fmt: skip
    try:
        return prefill_kernels(profiles, keys)
    finally:
        checks.generation.cache_clear()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    logger = logging.getLogger("sparsity.worker")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.skipif(gluon_module("block_sparse_prefill") is None, reason="needs Gluon, which the interpreter lacks")
def test_hopper_has_kernels_of_its_own(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [attends_everything(2), AGGRESSIVE]
    assert chosen(both, "cuda", 9, monkeypatch) == "gluon"
    assert chosen(both, "cuda", 9, monkeypatch, dim=64, dtype=torch.float16) == "gluon"
    assert not told.text


@pytest.mark.parametrize(
    ("shape", "generation", "why"),
    [
        ({}, 8, "it is no Hopper"),
        ({}, 10, "it is no Hopper"),
        ({"dim": 256}, 9, "no kernel for heads of 256 in torch.bfloat16, pages of 64 and tiles of 128 tokens"),
        ({"dtype": torch.float32}, 9, "no kernel for heads of 128 in torch.float32"),
    ],
)
def test_what_falls_to_triton_says_so(
    told: Any, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], generation: int, why: str
) -> None:
    assert chosen([AGGRESSIVE], "cuda", generation, monkeypatch, **shape) == "triton"
    assert "attended by Triton's kernels, not by the faster ones for NVIDIA Hopper" in told.text
    assert why in told.text


def test_one_tier_without_such_a_kernel_is_enough(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = parse_profile(profile_document(), "tiny")
    assert chosen([AGGRESSIVE, tiny], "cuda", 9, monkeypatch) == "triton"
    assert "tiles of 64, 128 tokens" in told.text


def test_the_interpreter_has_nobody_to_warn(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen([AGGRESSIVE], "cpu", 0, monkeypatch) == "triton"
    assert not told.text
