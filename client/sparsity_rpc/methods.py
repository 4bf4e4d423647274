"""Full names of the calls that spans and counts tell of, as `rpc.method` has them: the service, a slash, the method.

They are read off the contract, so that a service that is renamed is told by its name of then.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import FileDescriptor
from sparsity.v1 import inference_pb2, worker_pb2


def _name(file: FileDescriptor, service: str, method: str) -> str:
    of = file.services_by_name[service]
    return f"{of.full_name}/{of.methods_by_name[method].name}"


GENERATE: Final = _name(inference_pb2.DESCRIPTOR, "InferenceService", "Generate")
ROUTE: Final = _name(inference_pb2.DESCRIPTOR, "InferenceService", "Route")
EXPLAIN: Final = _name(inference_pb2.DESCRIPTOR, "InferenceService", "Explain")
WORKER_GENERATE: Final = _name(worker_pb2.DESCRIPTOR, "WorkerService", "Generate")
