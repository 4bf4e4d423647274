from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sparse_kernels import selection_report
from sparse_kernels.adapter import NAME
from sparse_kernels.config import PrefillConfig
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def test_every_selection_is_a_row_beside_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, intermediate_size=64, max_position_embeddings=512, **SHAPE)
    config._attn_implementation = NAME
    everything = PrefillConfig(sparse_from=0, threshold=0.0, query_tile=128)
    nothing = PrefillConfig(
        sparse_from=0, threshold=1.0, query_tile=128, sink=0, window=0, dense_last_tiles=0, mean_correction=False
    )
    monkeypatch.setattr(selection_report, "SELECTIONS", {"everything": everything, "nothing": nothing})
    prompts = [torch.randint(1, 64, (1, 400)) for _ in range(2)]
    rows = selection_report.measure(LlamaForCausalLM(config).eval(), prompts, frozenset({0}))
    assert rows[0]["value"] == 1.0
    assert rows[0]["density"] == 1.0
    assert rows[1]["value"] != 1.0
    assert float(str(rows[1]["density"])) < 0.6
    table = selection_report.markdown({"header": {"device": "CPU"}, "rows": rows})
    assert "| everything | 400 tokens, 2 texts, density 1.000, worst text 1.0000 | 1.0000 |" in table


def test_its_texts_are_long_enough() -> None:
    assert all(len(text) > 40_000 for text in selection_report.texts())


def test_it_loads_nothing_that_crashes_at_exit() -> None:
    # sentencepiece 0.2.1, which SGLang pins, frees its types in an order that can end the process by SIGSEGV.
    told = "import sys; import sparse_kernels.selection_report; print('sentencepiece' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
