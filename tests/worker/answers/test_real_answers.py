"""What SGLang's CPU engine is asked for beside text, by hooks into it: grammars, calls, thoughts, seeds.

By a worker's own contract, and by both doors of a router before it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import openai
import pytest
import torch
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_client import AsyncClient, Logprobs, Message, RawText, Request, Sampling, Tool
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import InvalidRequestError
from support.ports import free_port
from support.routers.router import running
from support.tiny import taught, tiny_tokenizer, tiny_weights
from support.workers.engine import Worker, worker_request
from transformers import AutoModelForCausalLM

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Wien"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOLS = [inference_pb2.Tool(name=name, parameters=json.dumps(SCHEMA)) for name in ("weather", "time")]
# Tokens of no other prompt: a chat's ends with the first, and the model goes on with the rest.
THOUGHT = ("<think>", "Hmm", ", Bonn", "...", "</think>", "Mild", " there", " now")
QUESTION = "What is the weather like?"
PROMPT: list[int] = tiny_tokenizer().encode(QUESTION).ids


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = taught(tiny_weights(tmp_path_factory.mktemp("model"), positions=2048, head_dim=16), THOUGHT)
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    options = ("--measured-share", "0", "--allow-expressions", "--reasoning-parser", "deepseek-r1")
    started = Worker(model, tmp_path_factory.mktemp("worker"), "answers", *options)
    try:
        yield started.wait()
        assert "Failed to apply hooks" not in started.log()
    finally:
        code = started.stop()
    assert code == 0


def asked(new: int = 64, **sampling: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    request = worker_request(PROMPT, new, **sampling)
    request.sampling.ClearField("ignore_eos")
    return request


def answers(worker: Worker, request: worker_pb2.WorkerServiceGenerateRequest) -> list[inference_pb2.GenerateResponse]:
    return [message.response for message in worker.stub.Generate(request, timeout=120)]


def text(responses: list[inference_pb2.GenerateResponse]) -> str:
    return "".join(response.text for response in responses)


def held_to(worker: Worker, new: int = 64, **form: Any) -> str:
    request = asked(new, response_format=inference_pb2.ResponseFormat(**form))
    found = answers(worker, request)
    assert found[-1].completion.finish_reason == inference_pb2.FINISH_REASON_STOP
    return text(found)


def test_answers_are_held_to_their_format(worker: Worker) -> None:
    # Between its parts a model may put 8 blanks, which this one likes to: its weights are made up.
    found = json.loads(held_to(worker, 160, json_schema=json.dumps(SCHEMA)))
    assert (set(found), found["city"] in ("Rome", "Wien")) == ({"city", "warm"}, True)
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", held_to(worker, regex="[0-9]{3}-[0-9]{4}"))
    assert held_to(worker, grammar='root ::= "yes" | "no"') in ("yes", "no")


def test_a_format_that_no_grammar_can_be_made_of_leaves_the_engine_as_it_was(worker: Worker) -> None:
    bad: list[dict[str, Any]] = [{"regex": "(a"}, {"grammar": "rot ::= b"}, {"json_schema": '{"type": "nonsense"}'}]
    for form in bad:
        (name,) = form
        with pytest.raises(grpc.RpcError) as caught:
            held_to(worker, **form)
        failed: Any = caught.value
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.details().startswith(f"sampling.response_format.{name}: cannot be used: ")
    assert held_to(worker, regex="ab") == "ab"


DEAD_ENDS: list[dict[str, Any]] = [{"json_schema": '{"$ref": "#"}'}, {"grammar": 'root ::= "b" c\nc ::= c'}]


@pytest.mark.parametrize("form", DEAD_ENDS)
def test_a_format_that_leaves_no_token_is_the_requests_fault_and_nobody_elses(
    worker: Worker, form: dict[str, Any]
) -> None:
    for drawn in ({"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "seed": 3}, {}):
        with pytest.raises(grpc.RpcError) as caught:
            answers(worker, asked(8, response_format=inference_pb2.ResponseFormat(**form), **drawn))
        failed: Any = caught.value
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "sampling.response_format: cannot be used" in failed.details()
    assert held_to(worker, regex="ab") == "ab"


def test_the_least_and_the_greatest_penalties_leave_scores_to_draw_from(worker: Worker) -> None:
    for penalty in (0.125, 2.0):
        request = asked(24, temperature=1.0, top_p=0.9, repetition_penalty=penalty)
        request.sampling.ignore_eos = True
        assert sum(len(response.token_ids) for response in answers(worker, request)) == 24


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"mode": inference_pb2.TOOL_CHOICE_MODE_REQUIRED}, {"weather", "time"}), ({"name": "time"}, {"time"})],
)
def test_a_demanded_call_is_made_and_told_apart(worker: Worker, choice: dict[str, Any], names: set[str]) -> None:
    request = asked(128)
    told = inference_pb2.ToolChoice(**choice)
    request.chat.CopyFrom(worker_pb2.ChatParsing(tools=TOOLS, tool_choice=told))
    # JSON in calls may have as much of it as a model likes, and this one's weights are made up.
    for blank in tiny_tokenizer().encode(" \n\r\t").ids:
        request.sampling.logit_bias.add(token_id=blank, bias=-100.0)
    found = answers(worker, request)
    parts = [part for response in found for part in response.tool_calls]
    assert {part.name for part in parts if part.name} <= names
    first = "".join(part.arguments for part in parts if part.index == 0)
    assert set(json.loads(first)) == {"city", "warm"}
    assert "<tool_call>" not in text(found)
    cut = found[-1].completion.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert cut or found[-1].completion.finish_reason == inference_pb2.FINISH_REASON_TOOL_CALLS


def test_log_probabilities_are_the_models(model: Path, worker: Worker) -> None:
    request = asked(6)
    request.sampling.ignore_eos = True
    request.logprobs.top, request.logprobs.prompt = 3, True
    found = answers(worker, request)
    tokens = [token for response in found for token in response.token_ids]
    told = [place for response in found for place in response.logprobs]
    prompt = list(found[0].prompt_logprobs)
    assert [place.token_id for place in told] == tokens
    assert [place.token_id for place in prompt] == PROMPT
    assert not any(response.prompt_logprobs for response in found[1:])
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = plain(torch.tensor([[*PROMPT, *tokens]])).logits[0].log_softmax(-1)
    whole = [*prompt, *told]
    assert not whole[0].HasField("logprob")
    for at, place in enumerate(whole[1:]):
        assert place.logprob == pytest.approx(float(rows[at, place.token_id]), abs=2e-3)
        best = rows[at].topk(3)
        assert [other.logprob for other in place.top] == pytest.approx(best.values.tolist(), abs=2e-3)
    assert b"".join(place.token for place in prompt) == b"What is the weather like?"


def test_a_temperature_changes_no_log_probability(worker: Worker) -> None:
    told = []
    for temperature in (0.0, 1.7):
        request = asked(1, temperature=temperature, seed=5)
        request.logprobs.top = 2
        told.append([other.logprob for other in answers(worker, request)[0].logprobs[0].top])
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_a_seed_gives_the_same_answer_again_and_none_another(worker: Worker) -> None:
    def drawn(**sampling: Any) -> list[int]:
        request = asked(24, temperature=1.5, **sampling)
        request.sampling.ignore_eos = True
        return [token for response in answers(worker, request) for token in response.token_ids]

    assert drawn(seed=11) == drawn(seed=11) != drawn(seed=12)
    assert drawn(seed=11, top_p=0.9, top_k=50, min_p=0.01) == drawn(seed=11, top_p=0.9, top_k=50, min_p=0.01)
    assert len({tuple(drawn()) for _ in range(3)}) == 3

    def beside() -> list[int]:
        """Joins a batch in which nobody asked for a seed."""
        other = asked(200, temperature=1.5, min_p=0.02)
        other.sampling.ignore_eos = True
        running = worker.stub.Generate(other, timeout=120)
        next(iter(running))
        found = drawn(seed=11)
        assert sum(len(message.response.token_ids) for message in running) > 100
        return found

    assert beside() == drawn(seed=11)


def test_a_bias_rules_a_token_out_or_in(worker: Worker) -> None:
    first = answers(worker, asked(1))[0].token_ids[0]
    other = (first + 1) % 250
    for bias, wanted in (({first: -100.0}, False), ({other: 100.0}, False), ({}, True)):
        pairs = [inference_pb2.LogitBias(token_id=token, bias=value) for token, value in bias.items()]
        found = answers(worker, asked(1, logit_bias=pairs))[0].token_ids[0]
        assert (found == first) is wanted
        assert other not in bias or found == other


def test_an_answer_says_which_model_gave_it(model: Path, worker: Worker) -> None:
    completion = answers(worker, asked(1))[-1].completion
    assert completion.model == model.name
    assert math.isclose(completion.sparsity.prefill_density, 1.0)


class Doors(NamedTuple):
    """A router before the worker, by either door."""

    grpc: AsyncClient
    http: openai.AsyncOpenAI


@pytest.fixture
async def doors(model: Path, worker: Worker, tmp_path: Path) -> AsyncIterator[Doors]:
    policy = {"domain": "low", "risk": "low", "bands": [{"from_tokens": 0, "tier": "aggressive"}]}
    (tmp_path / "low.yaml").write_text(json.dumps(policy))
    address = f"127.0.0.1:{free_port()}"
    config = RouterConfig(
        model, (worker.address,), policy_dir=tmp_path, listen="127.0.0.1:0", http_listen=address, drain_seconds=2.0
    )
    async with running(config) as router:
        await router.ready()
        declared = {"x-sparsity-domain": "low"}
        async with (
            AsyncClient(router.address) as by_grpc,
            openai.AsyncOpenAI(
                base_url=f"http://{address}/v1", api_key="any", max_retries=0, default_headers=declared
            ) as by_http,
        ):
            yield Doors(by_grpc, by_http)


async def test_thoughts_are_told_apart_by_either_door(model: Path, doors: Doors) -> None:
    thought, said = "".join(THOUGHT[1:4]), "".join(THOUGHT[5:])
    sampling = Sampling(max_new_tokens=len(THOUGHT) - 1)
    answer = await doors.grpc.generate(Request((Message("user", QUESTION),), domain="low", sampling=sampling))
    assert (answer.reasoning, answer.text) == (thought, said)
    assert answer.usage.completion_tokens == len(THOUGHT) - 1
    # What opens a thought is the prompt's, what closes it is part of it.
    assert answer.usage.reasoning_tokens == 4
    chat: dict[str, Any] = {"model": model.name, "messages": [{"role": "user", "content": QUESTION}]}
    chat["max_completion_tokens"] = len(THOUGHT) - 1
    whole = await doors.http.chat.completions.create(**chat)
    message: Any = whole.choices[0].message
    assert (message.reasoning_content, message.content) == (thought, said)
    usage: Any = whole.usage
    assert usage.completion_tokens_details.reasoning_tokens == answer.usage.reasoning_tokens
    stream = await doors.http.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    chunks: list[Any] = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
    assert "".join(delta.content or "" for delta in deltas) == said
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 4


async def test_several_answers_are_drawn_each_by_its_seed_by_either_door(model: Path, doors: Doors) -> None:
    def drawn(seed: int) -> Request:
        sampling = Sampling(max_new_tokens=24, temperature=1.5, seed=seed, ignore_eos=True)
        return Request(RawText(QUESTION), domain="low", sampling=sampling, n=3)

    async with doors.grpc.stream(drawn(11)) as stream:
        async for _ in stream:
            pass
        answers = await stream.answers()
    assert len({answer.text for answer in answers}) == 3
    assert len({answer.decision.decision_id for answer in answers}) == 1
    # Each has the next one's seed.
    async with doors.grpc.stream(drawn(12)) as stream:
        async for _ in stream:
            pass
        assert [answer.text for answer in await stream.answers()][:2] == [answer.text for answer in answers][1:]
    asked: dict[str, Any] = {"model": model.name, "prompt": QUESTION, "max_tokens": 24, "temperature": 1.5, "seed": 11}
    found = await doors.http.completions.create(**asked, n=3, extra_body={"ignore_eos": True})
    assert [choice.text for choice in found.choices] == [answer.text for answer in answers]
    assert found.usage is not None
    assert found.usage.completion_tokens == 3 * 24


async def test_a_prompts_log_probabilities_come_through_the_router(worker: Worker, doors: Doors) -> None:
    likely = Request(RawText(QUESTION), domain="low", sampling=Sampling(max_new_tokens=2), logprobs=Logprobs(2, True))
    answer = await doors.grpc.generate(likely)
    request = asked(2)
    request.logprobs.top, request.logprobs.prompt = 2, True
    own = [place for response in answers(worker, request) for place in response.prompt_logprobs]
    assert [place.token_id for place in answer.prompt_logprobs] == [place.token_id for place in own] == PROMPT
    assert answer.prompt_logprobs[0].logprob is None
    told = [place.logprob for place in answer.prompt_logprobs[1:]]
    assert told == pytest.approx([place.logprob for place in own[1:]], abs=1e-4)
    assert all(len(place.top) == 2 for place in answer.prompt_logprobs[1:])


async def test_a_tool_whose_schema_is_none_is_named_by_either_door(model: Path, doors: Doors) -> None:
    wrong = '{"type": "nonsense"}'
    asked = Request((Message("user", QUESTION),), "low", tools=(Tool("weather", "", wrong),), tool_choice="required")
    with pytest.raises(InvalidRequestError) as caught:
        await doors.grpc.generate(asked)
    assert caught.value.field == "tools[0].parameters"
    function = {"name": "weather", "parameters": json.loads(wrong)}
    chat: dict[str, Any] = {"model": model.name, "messages": [{"role": "user", "content": QUESTION}]}
    chat |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    with pytest.raises(openai.BadRequestError) as refused:
        await doors.http.chat.completions.create(**chat)
    assert refused.value.param == "tools[0].function.parameters"
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": json.loads(wrong)}}
    with pytest.raises(openai.BadRequestError) as refused:
        await doors.http.chat.completions.create(**chat | {"tools": [], "tool_choice": "none", "response_format": form})
    assert refused.value.param == "response_format.json_schema.schema"
