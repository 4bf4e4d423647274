"""SGLang's own contract, whose stubs lie in a package of their own: smg-grpc-proto."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Final, NamedTuple

from sparsity_rpc.errors import ConfigurationError

SCHEME: Final = "sglang+grpc://"
SERVICE: Final = "sglang.grpc.scheduler.SglangScheduler"
# What marks a status as the engine's report that it cannot keep to a format.
CONSTRAINT_FAILED: Final = "smg-constraint-failed"


class Contract(NamedTuple):
    """Its messages, its stubs, and the messages that it shares with other engines' contracts."""

    messages: Any
    stubs: Any
    common: Any


@cache
def contract() -> Contract:
    """The contract, imported by those alone who need it.

    Raises:
        ConfigurationError: naming the package, where it is not installed.
    """
    try:
        return Contract(
            import_module("smg_grpc_proto.generated.sglang_scheduler_pb2"),
            import_module("smg_grpc_proto.generated.sglang_scheduler_pb2_grpc"),
            import_module("smg_grpc_proto.generated.common_pb2"),
        )
    except ImportError as error:
        problem = "needs the package smg-grpc-proto: pip install 'sparsity-router[stock]'"
        raise ConfigurationError(f"--worker: {SCHEME} {problem}") from error
