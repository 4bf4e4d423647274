"""What workers answer with: a model, or, to look at routing without one, an echo of the prompt."""

from __future__ import annotations

from typing import Final

from sparsity.v1 import worker_pb2

SGLANG: Final = "sglang"
ECHO: Final = "echo"
ENGINES: Final = (SGLANG, ECHO)


def engine_of(capabilities: worker_pb2.GetCapabilitiesResponse) -> str:
    """The engine of a worker; one that names none runs SGLang."""
    return capabilities.engine.name or SGLANG
