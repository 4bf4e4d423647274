"""`python -m sparsity_bench.router.http_backend`: an OpenAI-style server without an engine, for load on HTTP routers.

It answers with as many pieces as `max_tokens` says, at once, as the mock worker does over gRPC.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import uvloop
from aiohttp import web

from sparsity_bench.router.mock_worker import WORDS

MODEL = "mock"
_BASE = {"id": "cmpl-1", "created": 1, "model": MODEL}
_LARGEST = 64 * 2**20


async def chat(request: web.Request) -> web.StreamResponse:
    """`/v1/chat/completions`, streamed or whole."""
    body = await request.json()
    pieces = int(body.get("max_tokens") or 1)
    if not body.get("stream"):
        message = {"role": "assistant", "content": WORDS * pieces}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": pieces, "total_tokens": pieces + 1}
        return web.json_response(_BASE | {"object": "chat.completion", "choices": [choice], "usage": usage})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(pieces):
        last = number == pieces - 1
        choice = {"index": 0, "delta": {"content": WORDS}, "finish_reason": "length" if last else None}
        document = _BASE | {"object": "chat.completion.chunk", "choices": [choice]}
        await response.write(f"data: {json.dumps(document)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def models(request: web.Request) -> web.Response:
    """`/v1/models`."""
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "mock"}]})


async def facts(request: web.Request) -> web.Response:
    """What routers ask a worker for before they use it."""
    facts: dict[str, Any] = {"model_id": MODEL, "model_path": MODEL, "served_model_name": MODEL, "version": "0"}
    return web.json_response(facts | {"is_generation": True, "max_req_input_len": 1_000_000, "dp_size": 1})


async def health(request: web.Request) -> web.Response:
    """Always well."""
    return web.Response(text="ok")


def application() -> web.Application:
    """The server."""
    app = web.Application(client_max_size=_LARGEST)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    for path in ("/health", "/health_generate", "/ping"):
        app.router.add_get(path, health)
    for path in ("/get_model_info", "/model_info", "/get_server_info", "/server_info"):
        app.router.add_get(path, facts)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True, type=int)
    uvloop.install()
    web.run_app(application(), host="127.0.0.1", port=parser.parse_args().port, access_log=None, print=None)
