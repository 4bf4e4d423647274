"""Clients of the router, for internal services.

    with Client("127.0.0.1:7000") as client:
        with client.stream(Request("What is the capital of France?", domain="support-chat")) as stream:
            for chunk in stream:
                print(chunk.text, end="")
        print(stream.answer().decision.explanation)

`AsyncClient` is the same for asyncio. With ``direct=True`` the answer streams straight from the worker that the router
names, and through the router where that fails. Failed calls raise the kinds of `errors`: each has its gRPC status
(``code``) and its name on the wire (``reason``), `InvalidRequestError` also each field that is wrong and why, and
`OverloadedError` the seconds after which to try again. :mod:`sparsity_client.wire` speaks the contract's messages.
"""

from sparsity_rpc import errors
from sparsity_rpc.tiers import Tier
from sparsity_rpc.tls import ClientTls

from sparsity_client.aio import AsyncClient, AsyncStream
from sparsity_client.answer import (
    Answer,
    Chunk,
    Decision,
    Explanation,
    LayerReport,
    RiskFinding,
    ScanMatch,
    Signals,
    SparsityReport,
    Step,
    TokenAlternative,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sparsity_client.client import Client, Stream
from sparsity_client.request import (
    CalledTool,
    Grammar,
    JsonObject,
    JsonSchema,
    Logprobs,
    Message,
    Prompt,
    RawText,
    Regex,
    Request,
    ResponseFormat,
    Sampling,
    TokenIds,
    Tool,
    ToolCall,
    ToolChoice,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "CalledTool",
    "Chunk",
    "Client",
    "ClientTls",
    "Decision",
    "Explanation",
    "Grammar",
    "JsonObject",
    "JsonSchema",
    "LayerReport",
    "Logprobs",
    "Message",
    "Prompt",
    "RawText",
    "Regex",
    "Request",
    "ResponseFormat",
    "RiskFinding",
    "Sampling",
    "ScanMatch",
    "Signals",
    "SparsityReport",
    "Step",
    "Stream",
    "Tier",
    "TokenAlternative",
    "TokenIds",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
    "errors",
]
