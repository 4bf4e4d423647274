from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparse_kernels.huggingface.adapter import NAME
from sparse_kernels.selectors import ORACLE, SELECTORS
from sparsity_bench.kernels import selection_report
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


@pytest.fixture(scope="module")
def measured() -> tuple[list[dict[str, object]], dict[str, list[float]]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, intermediate_size=64, max_position_embeddings=2048, initializer_range=0.3, **SHAPE
    )
    config._attn_implementation = NAME
    tokens = torch.randint(1, 64, (1500,)).tolist()
    return selection_report.measure(LlamaForCausalLM(config).eval(), tokens, lambda line: None)


def test_no_selector_misses_less_than_the_oracle(measured) -> None:
    rows, curves = measured
    assert [str(row["name"]).split(" (")[0] for row in rows] == list(SELECTORS)
    assert rows[0]["ratio"] == 1.0
    # The blocks of most mass are the best choice. Density is met to a block a tile, which on a text so short is
    # less than a step of the curve only where it is not low.
    first = selection_report.CURVE.index(0.3)
    for missed in curves.values():
        for place in range(first + 1, len(missed)):
            assert missed[place - 1] >= curves[ORACLE][place] - 1e-3
    assert all(float(str(row["output_error"])) > 0 for row in rows)
    for missed in curves.values():
        assert missed == sorted(missed, reverse=True)


def test_exactly_the_best_selector_is_judged(measured) -> None:
    rows, _ = measured
    (judged,) = [row for row in rows if row["goal"]]
    affordable = [row for name, row in zip(SELECTORS, rows, strict=True) if SELECTORS[name].kind == "selector"]
    assert judged["ratio"] == min(row["ratio"] for row in affordable)
    assert judged["met"] is (judged["ratio"] <= selection_report.BOUND)


def test_the_tables_have_every_selector_and_layer(measured, tmp_path: Path) -> None:
    rows, curves = measured
    table = selection_report.markdown({"header": {"device": "CPU"}, "rows": rows})
    # One of them has a row of its own where mean correction is judged.
    assert all(table.count(f"| {name}") == 2 + (name == "rows' needs") for name in SELECTORS)
    assert "| selector | 0 | 1 |" in table
    selection_report.draw(curves, 1500, tmp_path / "selection.png")
    assert (tmp_path / "selection.png").read_bytes().startswith(b"\x89PNG")


def test_means_of_fewer_blocks_stand_for_more(measured) -> None:
    rows, _ = measured
    (row,) = [row for row in rows if "error_by_mean_blocks" in row]
    errors = row["error_by_mean_blocks"]
    assert list(errors) == ["0", "1", "2", "4"]
    assert errors["1"] == row["output_error"]
    assert len(set(errors.values())) == 4


def test_every_selector_names_its_source() -> None:
    assert all(selector.paper for selector in SELECTORS.values())
    assert {selector.kind for selector in SELECTORS.values()} == {"oracle", "selector", "pattern"}
    assert next(iter(SELECTORS)) == ORACLE


def test_its_text_is_long_enough() -> None:
    assert len(selection_report.text()) > 8192 * 5


def test_it_loads_nothing_that_crashes_at_exit() -> None:
    # sentencepiece 0.2.1, which SGLang pins, frees its types in an order that can end the process by SIGSEGV.
    told = "import sys; import sparsity_bench.kernels.selection_report; print('sentencepiece' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
