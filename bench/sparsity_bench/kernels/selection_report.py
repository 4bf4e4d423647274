"""`python -m sparsity_bench.kernels.selection_report --model FOLDER`: how near every selector comes to the oracle.

On real queries and keys of a model: in each layer every selector of the registry is set to the same density, and what
it misses of the true softmax mass, and how far its output is from dense, stand beside the oracle, which keeps the
blocks of most true mass. The text is the pydoc pages of Python's own modules, so that anybody has it. What selection
costs a model in the end is another question: coverage is not quality.
"""

from __future__ import annotations

import argparse
import json
import platform
import pydoc
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from sparse_kernels.config import PrefillConfig
from sparse_kernels.cpu.block_selection import BlockSelection
from sparse_kernels.cpu.block_sparse_prefill import block_sparse_prefill_cpu
from sparse_kernels.cpu.dense_attention import dense_attention
from sparse_kernels.huggingface.adapter import NAME, use_attention
from sparse_kernels.huggingface.needs import Needs, keys_of, knob_for
from sparse_kernels.layout.page_summaries import PageSummaries
from sparse_kernels.layout.paged import PagedSequence
from sparse_kernels.layout.tiles import TileGrid
from sparse_kernels.mean_correction import UNITS
from sparse_kernels.scores import block_energy_cpu
from sparse_kernels.selectors import ORACLE, SELECTORS
from sparse_kernels.stats import AttentionStats
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

PAGE, SUB_PAGE, DENSITY, BOUND = 64, 16, 0.2, 1.5
CURVE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
# Whose output mean correction is judged by: what the shipped profiles select with.
_CORRECTED = "rows' needs"
_MODULES = ("argparse", "unittest.mock", "decimal")


class _Captured:
    """Mass and output of every selector in each layer; a :class:`sparse_kernels.huggingface.adapter.LayerAttention`.

    Attributes:
        missed: by selector and layer, true softmax mass on what is not kept, at each density of the curve.
        error: by selector and layer, RMS of the output's difference from dense over dense's, at ``DENSITY``.
        corrected: such errors of one selector by blocks behind a mean, 0 for no correction, and layer.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self.missed: dict[str, dict[int, list[float]]] = {name: {} for name in SELECTORS}
        self.error: dict[str, dict[int, float]] = {name: {} for name in SELECTORS}
        self.corrected: dict[int, dict[int, float]] = {unit: {} for unit in (0, *UNITS)}

    def __call__(
        self,
        module: nn.Module,
        layer: int,
        q: torch.Tensor,
        sequence: PagedSequence,
        summaries: PageSummaries,
        scale: float,
    ) -> tuple[torch.Tensor, AttentionStats]:
        """Dense, after measuring."""
        dense, stats = dense_attention(q, sequence, scale)
        base = SELECTORS[ORACLE].base
        grid = TileGrid.of(0, q.shape[0], base.query_tile)
        mass = block_energy_cpu(grid.split(q), keys_of(sequence, summaries), grid, base, scale).mass
        own = torch.arange(mass.shape[2])[None] >= grid.starts[:, None] // PAGE
        rows = grid.valid.sum(1) / q.shape[0]
        for name, selector in SELECTORS.items():
            self.missed[name][layer] = []
            for density in CURVE:
                knob = knob_for(selector, self._needs, density, [layer])
                config = selector.turned(selector.base, knob, q.shape[0])
                kept = self._needs.kept(selector.base, config, layer)
                held = ((mass * (kept | own)).sum(-1).mean(0) * rows).sum()
                self.missed[name][layer].append(max(0.0, 1.0 - float(held)))
                if density == DENSITY:
                    index = BlockSelection(kept, torch.zeros(kept.shape[:2]))

                    def error(config: PrefillConfig, index: BlockSelection = index) -> float:
                        found, _ = block_sparse_prefill_cpu(q, sequence, summaries, config, scale, selection=index)
                        return float((found - dense).norm() / dense.norm())

                    self.error[name][layer] = error(config)
                    for unit in self.corrected if name == _CORRECTED else ():
                        corrected = replace(config, mean_correction=unit > 0, mean_blocks=max(1, unit))
                        self.corrected[unit][layer] = error(corrected)
        return dense, stats


def measure(
    model: Any, tokens: Sequence[int], said: Any = print
) -> tuple[list[dict[str, object]], dict[str, list[float]]]:
    """Rows of a result file for one text, and each selector's curve, missed mass by density.

    Args:
        model: loaded with ``attn_implementation="sparsity"``.
        tokens: the text, read as one prompt.
        said: told of progress.
    """
    length = len(tokens)
    needs = Needs(model, tokens, [selector.base for selector in SELECTORS.values()], PAGE, SUB_PAGE)
    captured = _Captured(needs)
    use_attention(model, captured, PAGE, SUB_PAGE)
    with torch.inference_mode():
        model.base_model(torch.tensor([list(tokens)]), use_cache=False)
    at = CURVE.index(DENSITY)
    oracle = [captured.missed[ORACLE][layer][at] for layer in needs.layers]
    rows: list[dict[str, object]] = []
    curves = {}
    best: tuple[float, dict[str, object]] | None = None
    for name, selector in SELECTORS.items():
        missed = [captured.missed[name][layer][at] for layer in needs.layers]
        errors = [captured.error[name][layer] for layer in needs.layers]
        curves[name] = [
            sum(captured.missed[name][layer][place] for layer in needs.layers) / len(needs.layers)
            for place in range(len(CURVE))
        ]
        ratio = sum(missed) / max(sum(oracle), 1e-12)
        row: dict[str, object] = {
            "name": f"{name} ({selector.paper})",
            "shape": f"{length} tokens, density {DENSITY:g} in every layer",
            "value": round(sum(missed) / len(missed), 5),
            "unit": "of the softmax mass missed",
            "baseline": ORACLE,
            "baseline_value": round(sum(oracle) / len(oracle), 5),
            "ratio": round(ratio, 3),
            "goal": None,
            "met": None,
            "output_error": round(sum(errors) / len(errors), 4),
            "missed_by_layer": [round(value, 4) for value in missed],
            "error_by_layer": [round(value, 4) for value in errors],
        }
        if name == _CORRECTED:
            row["error_by_mean_blocks"] = {
                str(unit): round(sum(found.values()) / len(found), 4) for unit, found in captured.corrected.items()
            }
        rows.append(row)
        said(f"{length} tokens, {name}: misses {row['value']}, {ratio:.2f} times the oracle's")
        if selector.kind == "selector" and (best is None or ratio < best[0]):
            best = ratio, row
    assert best is not None
    best[1].update({"goal": f"the best selector misses <= {BOUND:g} times the oracle", "met": best[0] <= BOUND})
    return rows, curves


def text() -> str:
    """Long technical English that every Python has."""
    return "\n".join(pydoc.plain(pydoc.render_doc(name)) for name in _MODULES)


def markdown(document: dict[str, Any]) -> str:
    """The tables of a result file: all layers, then layer by layer."""
    lines = ["# selection", ""]
    lines += [f"- {key}: {value}" for key, value in document["header"].items()]
    lines += ["", "Missed: true softmax mass on blocks that are not kept, mean over layers. Error: RMS of the output's"]
    lines += ["difference from dense over dense's, mean over layers. A ratio of 1 is the oracle's.", ""]
    lines += ["| selector | shape | missed | times the oracle | error | goal | met |", "|---|---|---|---|---|---|---|"]
    for row in document["rows"]:
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        cells = (f"{row['value']:.4f}", f"{row['ratio']:.2f}", f"{row['output_error']:.3f}", row["goal"] or "", met)
        lines.append(f"| {row['name']} | {row['shape']} | {' | '.join(cells)} |")
    corrected = [row for row in document["rows"] if "error_by_mean_blocks" in row]
    if corrected:
        units = list(corrected[0]["error_by_mean_blocks"])
        lines += [
            "",
            "Error by the number of blocks behind a mean that stands for what is pruned (0: nothing does):",
            "",
        ]
        lines += [f"| selector | shape | {' | '.join(units)} |", "|---" * (len(units) + 2) + "|"]
        for row in corrected:
            errors = " | ".join(f"{error:.4f}" for error in row["error_by_mean_blocks"].values())
            lines.append(f"| {row['name']} | {row['shape']} | {errors} |")
    longest = max((row["shape"] for row in document["rows"]), key=lambda shape: int(shape.split()[0]))
    there = [row for row in document["rows"] if row["shape"] == longest]
    layers = len(there[0]["missed_by_layer"])
    lines += [
        "",
        f"Missed mass layer by layer, {longest}:",
        "",
        f"| selector | {' | '.join(map(str, range(layers)))} |",
    ]
    lines += ["|---" * (layers + 1) + "|"]
    for row in there:
        lines.append(
            f"| {row['name'].split(' (')[0]} | {' | '.join(f'{each:.3f}' for each in row['missed_by_layer'])} |"
        )
    return "\n".join(lines) + "\n\n![missed mass against density](selection.png)\n"


def draw(curves: dict[str, list[float]], length: int, path: Path) -> None:
    """Missed mass against density."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.figure(figsize=(8, 4.5))
    for name, missed in curves.items():
        dashed = "--" if SELECTORS[name].kind == "pattern" else "-"
        pyplot.plot(CURVE, missed, dashed, marker="*" if name == ORACLE else ".", label=name)
    pyplot.xlabel(f"density in every layer, {length} tokens")
    pyplot.ylabel("softmax mass missed, mean over layers")
    pyplot.yscale("log")
    pyplot.grid(alpha=0.3)
    pyplot.legend(fontsize=6)
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=110)
    pyplot.close()


def main() -> None:
    """Measures, prints the table, and writes it and the curve where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_bench.kernels.selection_report", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face model with grouped queries")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192], help="prompt lengths")
    parser.add_argument("--out", type=Path, help="folder to write selection.json, selection.md and selection.png to")
    options = parser.parse_args()
    # Not by transformers: it would load sentencepiece, whose pinned release can crash as the process ends.
    tokenizer_file = options.model / "tokenizer.json"
    if not tokenizer_file.is_file():
        parser.error(f"--model: {options.model} has no tokenizer.json; give the folder of a Hugging Face model")
    ids = Tokenizer.from_file(str(tokenizer_file)).encode(text()).ids
    if max(options.tokens) > len(ids):
        parser.error(f"--tokens: {max(options.tokens)} is more than the text has, {len(ids)}")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation=NAME).eval()
    rows: list[dict[str, object]] = []
    curves: dict[str, list[float]] = {}
    for length in sorted(options.tokens):
        found, curves = measure(model, ids[:length], lambda line: print(line, file=sys.stderr, flush=True))
        rows += found
    header = {
        "device": f"CPU, {platform.machine()}, {torch.get_num_threads()} threads, float32",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        + f", python {platform.python_version()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"python -m sparsity_bench.kernels.selection_report --model {options.model.name}"
        f" --tokens {' '.join(map(str, sorted(options.tokens)))}",
        "model": options.model.name,
    }
    document = {"header": header, "rows": rows}
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "selection.json").write_text(json.dumps(document, indent=2) + "\n")
        (options.out / "selection.md").write_text(markdown(document))
        draw(curves, max(options.tokens), options.out / "selection.png")
    print(markdown(document))


if __name__ == "__main__":
    main()
