"""`Explain` and `sparsity explain` show where in a prompt a literal was found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sparsity.v1 import inference_pb2, inference_pb2_grpc
from sparsity_cli.main import app
from sparsity_client.wire import make_request
from sparsity_router.fleet.fleet import Fleet
from sparsity_router.models.models import Model, Models
from sparsity_router.prompts import opened
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.prompt import Bounds, read_prompt
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_router.server import INFERENCE
from sparsity_router.services.inference import InferenceService
from sparsity_serving.server import listen
from support.routers.rig import Policies
from support.stores.snapshots import snapshot
from support.tiny import SPECIAL, tiny_model
from typer.testing import CliRunner

PDF = "Con\ufb01dential.\u00a0The attorney\u2011client\u00a0privi-\nlege holds."
FOUND = "attorney\u2011client\u00a0privi-\nlege"


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[str, ModelTokenizer]]:
    tokenizer = ModelTokenizer(tiny_model(folder), "tiny")
    fleet = Fleet((), tokenizer.digest, 1.0, None)
    models = Models(Model(Classifier(tokenizer, 10_000), fleet))
    service = InferenceService(models, cast(Any, Policies(snapshot())))
    endpoint = listen("127.0.0.1:0", {INFERENCE: service}, 2**20)
    await endpoint.server.start()
    try:
        yield f"127.0.0.1:{endpoint.port}", tokenizer
    finally:
        await endpoint.server.stop(None)
        await fleet.close()


def chat(*contents: str) -> inference_pb2.ChatPrompt:
    return inference_pb2.ChatPrompt(messages=[{"role": "user", "content": content} for content in contents])


@pytest.mark.parametrize("kind", ["text", "chat", "token ids"])
async def test_a_match_is_shown_in_the_callers_own_text(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (address, tokenizer), grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        prompts = {"text": PDF, "chat": chat("Hello.", PDF), "token ids": tokenizer.encode(PDF, special=False)}
        request = make_request(cast(Any, prompts[kind]), domain="rag")
        answer = await stub.Explain(inference_pb2.ExplainRequest(request=request))
        text = f"Hello.\n{PDF}" if kind == "chat" else PDF
        (match,) = answer.matches
        assert text[match.start : match.end] == FOUND
        assert (match.domain, match.flag, match.expression) == ("legal", "legal", "attorney-client privilege")
        assert answer.decision.reason == inference_pb2.REASON_FLAGGED


@pytest.mark.parametrize("kind", ["text", "chat", "token ids"])
async def test_what_the_answer_is_held_to_is_read_and_shown_behind_the_prompt(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (address, tokenizer), grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        prompts = {"text": "Hi.", "chat": chat("Hi."), "token ids": tokenizer.encode("Hi.", special=False)}
        request = make_request(cast(Any, prompts[kind]), domain="rag")
        request.sampling.response_format.json_schema = '{"const": "attorney-\\u0063lient privilege"}'
        (match,) = (await stub.Explain(inference_pb2.ExplainRequest(request=request))).matches
        whole = "Hi.\nconst\nattorney-client privilege"
        assert whole[match.start : match.end] == "attorney-client privilege"
        bounds = Bounds(10_000, 1_000, 10_000, tokenizer.control)
        found = opened.open_prompt(read_prompt(request, bounds), request, tokenizer)
        # A scan must have looked at all of it.
        assert (found.words, found.length) == (whole, len(whole))


async def test_a_match_that_control_tokens_part_is_shown(tmp_path: Path) -> None:
    (end,) = SPECIAL
    async with serving(tmp_path) as (address, _), grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = make_request(f"I wa{end}nt to d{end}ie", domain="rag")
        answer = await stub.Explain(inference_pb2.ExplainRequest(request=request))
        (match,) = answer.matches
        assert request.text[match.start : match.end] == f"wa{end}nt to d{end}ie"


async def test_the_command_shows_places_and_text_only_by_option(tmp_path: Path) -> None:
    async with serving(tmp_path) as (address, _):
        written = tmp_path / "pdf.txt"
        written.write_text(PDF, encoding="utf-8")
        ask = ["explain", "--file", str(written), "--raw", "--domain", "rag", "--router", address]
        plain = await asyncio.to_thread(CliRunner().invoke, app, ask)
        shown = await asyncio.to_thread(CliRunner().invoke, app, [*ask, "--show-text"])
    start = PDF.index(FOUND)
    place = (
        f"legal: 'attorney-client privilege' at characters {start} to {start + len(FOUND)}, joined over a line's end"
    )
    assert place in plain.stdout, plain.output
    assert "u2011" not in plain.stdout
    assert f"{place}: {FOUND!a}" in shown.stdout


async def test_a_text_whose_forms_are_not_known_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> tuple[bytes, ...]:
        raise ValueError("no memory")

    monkeypatch.setattr(opened, "readings", failing)
    async with serving(tmp_path) as (address, _), grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        answer = await stub.Explain(inference_pb2.ExplainRequest(request=make_request("hello", domain="rag")))
        assert answer.decision.reason == inference_pb2.REASON_CLASSIFIER_FAILED
        assert answer.decision.tier == inference_pb2.TIER_DENSE
