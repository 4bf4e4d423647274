"""The process that the embedding model lives in.

It is one of its own because the model is larger than a router, and its arithmetic would hold up the event loop. This
module is imported by both sides, so it loads nothing heavy.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_router.processes.lifeline import end_with_parent

if TYPE_CHECKING:
    from sparsity_router.prompts.embedding import Classifier


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
