"""What a server of stock SGLang says of itself, in the terms of workers, and why it is not taken for a dense one."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_serving.engines import SGLANG

from sparsity_router.fleet.stock.model import StockModel, sparse_by

# Backends of SGLang that attend every causal pair; what is none of them is not taken at its word.
DENSE_BACKENDS: Final = frozenset(
    {
        "aiter", "ascend", "cutedsl_mla", "cutlass_mla", "fa3", "fa4", "flashinfer", "flashmla", "flex_attention",
        "hpc_ops", "intel_amx", "intel_xpu", "tokenspeed_mla", "torch_native", "triton", "trtllm_mha", "trtllm_mla",
        "wave",
    }
)  # fmt: skip
_PHASES: Final = ("prefill_attention_backend", "decode_attention_backend")
_OVERRIDES: Final = "json_model_override_args"
_TOKENIZER: Final = "tokenizer.json"
_MOST_TOKENIZER: Final = 2**28
# Of a server that does not say how many it runs at once.
_REQUESTS: Final = 48


class Facts:
    """What one start of a server says of itself.

    Args:
        info: GetModelInfoResponse of SGLang's contract.
        server: GetServerInfoResponse.
        digest: SHA-256 of its tokenizer.json; empty where it has none.
    """

    def __init__(self, info: Any, server: Any, digest: str) -> None:
        self.info, self.digest = info, digest
        self.started: tuple[int, int] = started(server)
        self._arguments: Mapping[str, Any] = MessageToDict(server.server_args)
        self._version, self.kv_tokens = str(server.sglang_version), int(server.max_total_num_tokens)
        self.grammars = str(self._arguments.get("grammar_backend") or "xgrammar") != "none"

    @property
    def backends(self) -> tuple[str, ...]:
        """The attention backends that it was told to run, prefill's and decode's; empty where it does not say."""
        both = self._arguments.get("attention_backend")
        found = [str(self._arguments.get(phase) or both or "") for phase in _PHASES]
        return tuple(dict.fromkeys(found)) if all(found) else ()

    @property
    def attention(self) -> str:
        """Them, in words."""
        return " and ".join(self.backends)

    def objection(self, model: StockModel) -> str:
        """Why it is not used as a dense worker of ``model``; empty where it is."""
        if not self.info.is_generation:
            return "it generates nothing"
        # Its vocabulary's size and its name it tells as they come: some versions know neither.
        if self.info.model_type and model.kind and self.info.model_type != model.kind:
            return f"its model is a {self.info.model_type}, and the router's a {model.kind}"
        if sparse := model.sparse or sparse_by({"architectures": self.info.architectures}):
            return f"its model has sparse attention ({sparse}), whatever its attention backend is called"
        if self._overrides:
            return f"it runs with {_OVERRIDES}, which may give its model sparse attention"
        if not self.backends:
            return "it does not say which attention backend it runs; start it with --attention-backend"
        if other := next((name for name in self.backends if name not in DENSE_BACKENDS), ""):
            return f"its attention backend is {other}, which is not known to attend everything"
        if sparse := next((name for name in self._arguments if "spars" in name and self._on(name)), ""):
            return f"it runs with {sparse}: stock servers are taken for dense ones alone"
        return ""

    def capabilities(self, name: str) -> worker_pb2.GetCapabilitiesResponse:
        """Itself as a worker of the dense tier, by its own word: nothing proves it."""
        told, requests = self.info, int(self._arguments.get("max_running_requests") or _REQUESTS)
        return worker_pb2.GetCapabilitiesResponse(
            worker_id=name,
            model=PurePath(told.served_model_name or told.model_path).name,
            tier=inference_pb2.TIER_DENSE,
            profile="dense",
            backend=self.attention,
            context_length=max(told.max_req_input_len, 0),
            max_requests=requests,
            kv_capacity_tokens=max(self.kv_tokens, 0),
            engine_version=self._version,
            tokenizer_digest=self.digest,
            engine=worker_pb2.EngineFacts(
                name=SGLANG,
                device=str(self._arguments.get("device") or ""),
                dtype=str(self._arguments.get("dtype") or ""),
                page_size=int(self._arguments.get("page_size") or 0),
                tensor_parallel=int(self._arguments.get("tp_size") or 1),
            ),
            dense_reasoning=True,
        )

    @property
    def _overrides(self) -> bool:
        """Whether its model's config.json is changed as it starts."""
        return "".join(str(self._arguments.get(_OVERRIDES) or "").split()) not in ("", "{}")

    def _on(self, name: str) -> bool:
        return bool(self._arguments[name]) and not name.endswith("config")


def started(server: Any) -> tuple[int, int]:
    """When a server began, which tells two starts of it apart: seconds and nanoseconds."""
    return server.start_time.seconds, server.start_time.nanos


def tokenizer_digest(pieces: Iterable[bytes]) -> str:
    """SHA-256 of the tokenizer.json in a server's archive, hexadecimal; empty where there is none that can be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
            found = next(entry for entry in archive.infolist() if PurePath(entry.filename).name == _TOKENIZER)
            if found.file_size > _MOST_TOKENIZER:
                return ""
            return hashlib.sha256(archive.read(found)).hexdigest()
    except Exception:  # each way of packing has its own for what is damaged
        return ""
