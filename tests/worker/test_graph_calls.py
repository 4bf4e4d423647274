"""The backend through SGLang's calls around CUDA graphs, without a GPU: see `support.kernels.graph_calls`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Triton's interpreter takes most of a minute, on a busy machine several.
pytestmark = pytest.mark.timeout(1200)
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """In a process of its own, which must start with Triton's interpreter."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.kernels.graph_calls"],
        capture_output=True, text=True, timeout=560,
        env=os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "SGLANG_USE_CPU_ENGINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    document: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return document


def test_a_captured_prefill_batch_names_nobody_and_leaves_no_mark(found: dict[str, Any]) -> None:
    case = found["captured_prefill"]
    assert case["rids"] is None, "SGLang names captured batches now: see what else has changed"
    assert case["booked"] == 0
    assert case["entries"] == 4
    assert case["short"] == [[1.0, 1.0]] * 2
    assert case["long"] == case["alone"]
    assert case["long"][0] == [1.0, 1.0]
    assert max(case["long"][1]) < 1
    assert case["calls"] == [2] * 4


def test_a_padded_replay_decodes_and_counts_as_the_batch_without_a_graph(found: dict[str, Any]) -> None:
    case = found["padded_decode"]
    assert case["magnitude"] > 0.05
    assert case["difference"] < 1e-5
    assert case["entries"] == 6
    assert case["replayed"] == case["eager"]
    assert [max(layers) < 1 for layers in case["eager"]] == [True, False, True]
    assert case["calls"] == [2 + 2] * 3 + [2] * 3


def test_a_graph_holds_which_rows_are_dense_by_their_newest_token_and_by_length(found: dict[str, Any]) -> None:
    case = found["dense_rows"]
    # A marker that the host has not seen yet turns the step as one that it has, and only its own row.
    assert case["differences"]["opened"] == case["differences"]["closed"] == [0, 0, 0]
    assert case["differences"]["inside"][0] > 0.01
    assert case["differences"]["inside"][1:] == [0, 0]
    # Three sequences at once decode sparsely from 332 tokens only, and one alone always.
    assert [max(layers) < 1 for layers in case["first"]] == [True, True, False]
    assert case["differences"]["alone"] == [0]


def test_padding_and_idle_batches_count_for_nobody(found: dict[str, Any]) -> None:
    assert found["padded_eager"] == {"entries": 1, "calls": [4]}


def test_requests_that_nobody_told_of_are_served(found: dict[str, Any]) -> None:
    case = found["unknown_prompts"]
    # A replay does not name its requests: only the prefill was counted.
    assert case["decoded"] == [2]
    assert max(case["density"][0]) < 1


def test_the_dense_tier_by_our_kernels_attends_everything_and_reports_nothing(found: dict[str, Any]) -> None:
    case = found["dense_tier"]
    assert max(case["differences"]) < 1e-5
    assert case["accounts"] == case["entries"] == case["summary_bytes"] == 0


def test_tiers_share_a_batch_and_a_graph_and_attend_as_each_alone(found: dict[str, Any]) -> None:
    case = found["shared_tiers"]
    assert case["magnitude"] > 0.05
    assert max(case["differences"]) < 1e-5
    dense, moderate, aggressive = case["told"]
    assert dense == [[1.0, 1.0], [1.0, 1.0]]
    assert [moderate, aggressive] == case["alone"]
    assert all(aggressive[phase][1] < moderate[phase][1] for phase in range(2))
    assert moderate[1][1] < 1


def test_a_warm_up_leaves_no_mark(found: dict[str, Any]) -> None:
    case = found["warmed"]
    assert case["same"] == [True, True]
    assert case["entries"] == 0
    assert case["difference"] == 0
    assert max(case["density"][0]) < 1


def test_chunks_end_on_tiles_of_the_profile_and_wherever_else_they_must(found: dict[str, Any]) -> None:
    tile, alone, beside, dense = found["refusals"]["chunks"]
    assert tile == alone
    assert beside % tile == beside % 96 == 0
    assert dense is None


def test_what_attention_cannot_be_held_by_is_refused_with_its_reason(found: dict[str, Any]) -> None:
    narrow = found["refusals"]["narrow"]
    assert narrow.startswith(
        "kv_cache_dtype: must be 16 or 32 bits wide, not torch.float8_e4m3fn: pages are summarized"
    )
    assert "break them" in found["refusals"]["full"]
    assert found["refusals"]["glue"].startswith("SGLANG_ENABLE_METADATA_GLUE_GRAPH: must be off")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("windows", "model: sliding-window KV pools are not supported; serve this model dense"),
        ("latent", "model: MLA models are not supported; serve this model dense, or by index_topk"),
        ("encoder", "model: encoder-decoder models are not supported; serve this model dense"),
        ("page", "page_size: must equal the profile's block_size 64, not 128"),
        ("device", "device: the sparsity backend runs on cpu and cuda, not xpu"),
        ("drafts", "speculative_algorithm: speculative decoding is not supported by this backend"),
        ("window", "model: layer 0 has a logit cap or window; serve this model dense"),
        ("cap", "model: layer 0 has a logit cap or window; serve this model dense"),
        ("cross", "model: layer 0 is not causal self-attention; serve this model dense"),
        ("encoder layer", "model: layer 0 is not causal self-attention; serve this model dense"),
    ],
)
def test_a_model_that_the_kernels_cannot_attend_is_refused_by_name(
    found: dict[str, Any], kind: str, words: str
) -> None:
    assert found["refusals"][kind] == words
