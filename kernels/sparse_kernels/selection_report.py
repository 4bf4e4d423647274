"""`python -m sparse_kernels.selection_report --model FOLDER`: what block selection costs a model, beside what it saves.

For every selection: perplexity of the second half of long texts against dense attention in the same run, and density,
the share of (query, key) pairs attended, over the sparse layers. The texts are the pydoc pages of Python's own modules,
so that anybody has them. "Oracle" scores every row against every key; it saves nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import pydoc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from sparse_kernels.adapter import NAME, SparseAttention, use_sparsity
from sparse_kernels.config import PrefillConfig

_DENSE = PrefillConfig(sparse_from=2**31)
_BASE = PrefillConfig(sparse_from=0, query_stride=8, sink=64, window=256, dense_last_tiles=1)
_ROWS = replace(_BASE, score="sampled_rows", rule="top_p")
_NEEDS = replace(_ROWS, peak=8.0)
SELECTIONS: dict[str, PrefillConfig] = {
    "oracle of mean mass, top-p 0.95": replace(_ROWS, query_stride=1, threshold=0.95),
    "oracle of rows' needs, top-p 0.7": replace(_NEEDS, query_stride=1, threshold=0.7),
    "FlashPrefill: block means, 0.05 of the strongest": replace(_BASE, score="block_means", threshold=0.05),
    "sub-block means, 0.05 of the strongest": replace(_BASE, threshold=0.05),
    "sub-block means, 0.15 of the strongest": replace(_BASE, threshold=0.15),
    "sub-block means, top-p 0.85": replace(_BASE, rule="top_p", threshold=0.85),
    "sub-block means, every 2nd row's needs, top-p 0.75": replace(
        _BASE, rule="top_p", peak=8.0, query_stride=2, threshold=0.75
    ),
    "every 8th row's needs, top-p 0.85": replace(_NEEDS, threshold=0.85),
    "every 8th row's needs, top-p 0.75": replace(_NEEDS, threshold=0.75),
    "every 8th row's mean mass, top-p 0.9": replace(_ROWS, threshold=0.9),
}
_MODULES = (
    ("argparse", "asyncio.streams", "calendar"),
    ("unittest.mock", "statistics", "decimal"),
    ("logging", "subprocess", "typing"),
)
_CHARACTERS = 80_000


def texts() -> Iterator[str]:
    """Long technical English that every Python has."""
    for modules in _MODULES:
        yield "\n".join(pydoc.plain(pydoc.render_doc(name)) for name in modules)[:_CHARACTERS]


@torch.inference_mode()
def loss(model: Any, ids: torch.Tensor) -> float:
    """Mean negative log-likelihood of the second half, natural logarithm."""
    half = ids.shape[1] // 2
    hidden = model.model(ids, use_cache=False).last_hidden_state[0, half - 1 : -1]
    total = 0.0
    for first in range(0, hidden.shape[0], 512):
        part = model.lm_head(hidden[first : first + 512]).float()
        wanted = ids[0, half + first : half + first + part.shape[0]]
        total += float(torch.nn.functional.cross_entropy(part, wanted, reduction="sum"))
    return total / int(hidden.shape[0])


def measure(model: Any, prompts: Sequence[torch.Tensor], dense_layers: frozenset[int]) -> list[dict[str, object]]:
    """Rows of a result file: each selection's perplexity over dense, by prompt length."""
    rows: list[dict[str, object]] = []
    use_sparsity(model, SparseAttention(_DENSE))
    base = [loss(model, ids) for ids in prompts]
    length = prompts[0].shape[1]
    sparse = frozenset(range(model.config.num_hidden_layers)) - dense_layers
    for name, prefill in SELECTIONS.items():
        ratios, density = [], 0.0
        for ids, dense in zip(prompts, base, strict=True):
            attended = use_sparsity(model, SparseAttention(prefill, dense_layers=dense_layers))
            ratios.append(math.exp(loss(model, ids) - dense))
            density += attended.density(sparse) / len(prompts)
        shape = f"{length} tokens, {len(prompts)} texts, density {density:.3f}, worst text {max(ratios):.4f}"
        value = sum(ratios) / len(ratios)
        row = {"name": name, "shape": shape, "value": round(value, 6), "unit": "times the perplexity"}
        row |= {"baseline": "dense", "baseline_value": 1.0, "ratio": round(1 / value, 4), "density": round(density, 4)}
        rows.append(row | {"goal": None, "met": None})
        print(f"{name}: {value:.4f} at density {density:.3f}, worst {max(ratios):.4f}", file=sys.stderr, flush=True)
    return rows


def markdown(document: dict[str, Any]) -> str:
    """The table of a result file."""
    lines = ["# selection", ""]
    lines += [f"- {key}: {value}" for key, value in document["header"].items()]
    lines += ["", "| selection | shape | perplexity, times dense |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['shape']} | {row['value']:.4f} |" for row in document["rows"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table, and writes it where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m sparse_kernels.selection_report", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face model with grouped queries")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192], help="prompt lengths")
    parser.add_argument("--texts", type=int, default=len(_MODULES), help="how many texts")
    parser.add_argument("--dense-layers", type=int, nargs="*", default=[0, 1], help="layers that stay dense")
    parser.add_argument("--out", type=Path, help="folder to write selection.json and selection.md to")
    options = parser.parse_args()
    # Not by transformers: it would load sentencepiece, whose pinned release can crash as the process ends.
    tokenizer_file = options.model / "tokenizer.json"
    if not tokenizer_file.is_file():
        parser.error(f"--model: {options.model} has no tokenizer.json; give the folder of a Hugging Face model")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation=NAME).eval()
    rows: list[dict[str, object]] = []
    for length in options.tokens:
        encoded = [tokenizer.encode(text).ids[:length] for text in list(texts())[: options.texts]]
        if short := [len(ids) for ids in encoded if len(ids) < length]:
            parser.error(f"--tokens: {length} is more than the shortest text has, {min(short)}")
        prompts = [torch.tensor([ids]) for ids in encoded]
        rows += measure(model, prompts, frozenset(options.dense_layers))
    header = {
        "device": f"CPU, {platform.machine()}, {torch.get_num_threads()} threads, float32",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        + f", python {platform.python_version()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"python -m sparse_kernels.selection_report --model {options.model.name} --texts {options.texts}"
        f" --tokens {' '.join(map(str, options.tokens))}",
        "model": options.model.name,
    }
    document = {"header": header, "rows": rows}
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "selection.json").write_text(json.dumps(document, indent=2) + "\n")
        (options.out / "selection.md").write_text(markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
