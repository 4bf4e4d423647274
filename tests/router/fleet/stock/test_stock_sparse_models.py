"""Models that attend sparsely under the name of a dense backend: SGLang wraps it by their config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity_router.fleet.stock.model import sparse_by
from sparsity_router.fleet.workers import State
from support.routers.rig import rig
from support.tiny import tiny_model
from support.workers.fake_stock import FakeStock


@pytest.mark.parametrize(
    ("config", "server", "problem"),
    [
        ({"architectures": ["MiniMaxM3SparseForCausalLM"]}, {}, "sparse attention (MiniMaxM3SparseForCausalLM)"),
        ({"index_topk": 2048}, {}, "sparse attention (index_topk)"),
        ({"text_config": {"indexer_n_heads": 4}}, {}, "sparse attention (indexer_n_heads)"),
        ({}, {"architectures": ("MiniMaxM3SparseForConditionalGeneration",)}, "sparse attention (MiniMaxM3Sparse"),
        ({}, {"arguments": {"json_model_override_args": '{"index_topk": 64}'}}, "json_model_override_args"),
        ({"architectures": ["LlamaForCausalLM"]}, {"arguments": {"json_model_override_args": " { } "}}, ""),
        ({"index_topk": None, "decoder_sparse_step": 1}, {"arguments": {"json_model_override_args": ""}}, ""),
    ],
)
async def test_a_model_with_sparse_layers_is_not_taken_for_a_dense_one(
    config: dict[str, Any], server: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    told = json.loads((model / "config.json").read_text()) | config
    (model / "config.json").write_text(json.dumps(told))
    stock = await FakeStock(model, **server).start()
    try:
        async with rig(model, places=(stock.address,)) as r:
            (worker,) = r.fleet.workers
            assert worker.state is (State.INCOMPATIBLE if problem else State.READY)
            assert problem in worker.problem
    finally:
        await stock.stop()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"sparse_config": {"topk": 64}}, "sparse_config"),
        ({"compress_ratios": [0, 4]}, "compress_ratios"),
        ({"dual_chunk_attention_config": {"sparse_attention_config": {"0": {}}}}, "sparse_attention_config"),
        ({"architectures": None, "text_config": None, "num_experts": 8}, ""),
    ],
)
def test_what_makes_a_model_sparse(config: dict[str, Any], found: str) -> None:
    assert sparse_by(config) == found
