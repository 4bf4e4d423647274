"""A worker has compiled what batches ask for before it serves; see `support.kernels.kernel_variants`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent


def ran(arguments: list[str]) -> str:
    """In a process of its own, which Triton's interpreter has not been started in."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, timeout=280,
        env=os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ran(["-m", "support.kernels.kernel_variants"]).splitlines()[-1])
    return document


@pytest.mark.parametrize("case", ["means on Hopper", "means elsewhere", "rows", "tiers"])
def test_no_batch_needs_a_kernel_that_the_warm_up_did_not_run(found: dict[str, Any], case: str) -> None:
    own = found[case]
    assert own["after"] == own["warm"]
    tables = own["graphs"].pop("sparse_kernels.gpu.decode_batch.fill_table")
    assert (tables, own["graphs"]) == (1, own["warm"])
    assert any("block_sparse_prefill" in name for name in own["warm"])
    assert own["entries"] == 0


def test_variants_are_few(found: dict[str, Any]) -> None:
    """By widths of tables, by powers of 2 of sequences, and for what attends everything: not by lengths."""
    warm = {
        name.rpartition(".")[0].rpartition(".")[2]: count for name, count in found["means on Hopper"]["warm"].items()
    }
    # With means or none, at one go or at two.
    assert warm.pop("block_sparse_prefill") in (2, 4)
    assert warm == {
        "tile_selection": 3, "ordered_means": 1, "page_summaries": 1, "page_scores": 1,
        "page_selection": 1, "sparse_paged_decode": 2 * 6, "decode_splits": 6,
    }  # fmt: skip


def test_processes_share_out_what_the_warm_up_will_run(found: dict[str, Any]) -> None:
    own = found["shares"]
    assert own["together"] == own["whole"]
    assert sum(own["each"]) == sum(own["whole"])
    assert max(own["each"]) - min(own["each"]) <= 1


def test_a_step_waits_for_nothing(found: dict[str, Any]) -> None:
    own = found["waits"]
    assert own["shown"] == ["to"]
    assert own["prefill"] == own["decode"] == own["replay"] == []


_TOLD = """
import logging, sys
from types import SimpleNamespace
import triton
from sparsity_worker.plugin.compiling import tell_of_compiling
logging.basicConfig(stream=sys.stdout, format="%(message)s")
heard = []
triton.knobs.compilation.listener = lambda **told: heard.append(told["cache_hit"])
tell_of_compiling()
function = SimpleNamespace(__module__="sparse_kernels.gpu.page_scores", __name__="score_pages")
for hit in (False, True):
    triton.knobs.compilation.listener(
        src=SimpleNamespace(fn=function), times=SimpleNamespace(total=2_500_000), cache_hit=hit,
        metadata={}, metadata_group={},
    )
assert heard == [False, True]
"""


def test_the_log_says_what_was_compiled_later() -> None:
    assert ran(["-c", _TOLD]).splitlines() == [
        "kernel sparse_kernels.gpu.page_scores.score_pages was compiled after warm-up: 2500 ms",
        "kernel sparse_kernels.gpu.page_scores.score_pages was compiled after warm-up: 2500 ms, from the cache",
    ]
