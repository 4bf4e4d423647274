"""What a worker makes of an engine's steps, and what it refuses before the engine sees it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import ConfigurationError, EngineError, InvalidRequestError
from sparsity_serving.fields.defaults import Defaults
from sparsity_serving.tokens.spelling import Spelling
from sparsity_worker.calls.answer import Answer
from sparsity_worker.calls.parsers import Parsers
from sparsity_worker.calls.parsing import ChatParser
from sparsity_worker.calls.requests import sampling_params
from sparsity_worker.calls.wishes import check_wishes, granted, parser_of
from sparsity_worker.config import ModelFacts
from sparsity_worker.echo.engine import EchoEngine
from sparsity_worker.engine.grammar import abort, check_grammar
from sparsity_worker.engine.logprobs import Scored, Scores, scored
from sparsity_worker.engine.sglang_engine import EngineRequest, Step
from sparsity_worker.plugin.choosing.seeds import give_seeds
from support.tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models

TOKENIZER = tiny_tokenizer()
FACTS = ModelFacts("tiny", 512, 257)
ENGINE: Any = SimpleNamespace(name="sglang", seeds=False, expressions=True)
CAUTIOUS: Any = SimpleNamespace(name="sglang", seeds=True, expressions=False)
PATTERN = json.dumps({"type": "object", "properties": {"a": {"type": "array", "items": {"pattern": "(.?){0,500}"}}}})
(END,) = TOKENIZER.encode("<|end|>").ids
HERMES, CHAT = Parsers("hermes"), worker_pb2.ChatParsing(tools=[inference_pb2.Tool(name="f")])


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


def answer(parser: ChatParser, *stops: str, ends: frozenset[int] = frozenset()) -> Answer:
    return Answer(TOKENIZER, Spelling(TOKENIZER), stops, parser, ends)


def test_a_token_is_spelled_to_the_byte() -> None:
    spelling = Spelling(TOKENIZER)
    assert b"".join(spelling[token] for token in ids("a é🐸\n")) == "a é🐸\n".encode()
    assert (spelling[END], spelling[10_000]) == (b"<|end|>", b"")
    pieces = Tokenizer(models.BPE({"\u2581a": 0, "<0xF0>": 1}, [], byte_fallback=True))
    pieces.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    assert (Spelling(pieces)[0], Spelling(pieces)[1]) == (b" a", b"\xf0")


def test_calls_end_with_their_own_reason_and_their_model_ends_the_turn() -> None:
    made = answer(ChatParser(HERMES, CHAT), ends=frozenset({END}))
    tokens = [*ids('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'), END]
    (whole,) = made.add(Step(tokens, "stop", 0, b""))
    assert whole.text == ""
    assert next((part.name, bool(part.id)) for part in whole.tool_calls) == ("f", True)
    assert "".join(part.arguments for part in whole.tool_calls) == "{}"
    assert list(whole.token_ids) == tokens
    assert made.finish_reason("stop") == inference_pb2.FINISH_REASON_TOOL_CALLS
    assert made.finish_reason("length") == inference_pb2.FINISH_REASON_LENGTH


def test_tokens_of_thoughts_are_counted() -> None:
    made = answer(ChatParser(Parsers("", "qwen3"), worker_pb2.ChatParsing(), True))
    said = [response for step in (ids("hm</think>"), ids("yes")) for response in made.add(Step(step, None, 0, b""))]
    assert ("".join(each.reasoning for each in said), "".join(each.text for each in said)) == ("hm", "yes")
    assert (made.tokens, made.reasoning_tokens) == (13, len("hm</think>"))


def test_a_stop_text_ends_an_answer_that_had_no_room_either() -> None:
    made = answer(ChatParser(Parsers(), None), "b")
    (only,) = made.add(Step(ids("abc"), "length", 0, b""))
    assert (only.text, made.stopped, made.finish_reason("length")) == ("a", True, inference_pb2.FINISH_REASON_STOP)


def test_log_probabilities_go_with_their_tokens() -> None:
    meta = {
        "output_token_logprobs": [(-0.5, 72, None)], "output_top_logprobs": [[(-0.5, 72, None), (-1.0, 73, None)]],
        "input_token_logprobs": [(None, 70, None), (-2.0, 71, None)], "input_top_logprobs": [None, [(-2.0, 71, None)]],
    }  # fmt: skip
    told = scored(meta, "output")
    assert told == (Scored(72, -0.5, ((72, -0.5), (73, -1.0))),)
    assert scored(meta, "input") == (Scored(70, None), Scored(71, -2.0, ((71, -2.0),)))
    assert scored({}, "output") == ()
    assert scored(meta | {"output_top_logprobs": None}, "output") == (Scored(72, -0.5),)
    made = answer(ChatParser(Parsers(), None))
    (only,) = made.add(Step([72], None, 0, b"", logprobs=told, prompt_logprobs=scored(meta, "input")))
    assert [(each.token_id, each.logprob, len(each.top)) for each in only.logprobs] == [(72, -0.5, 2)]
    assert [each.HasField("logprob") for each in only.prompt_logprobs] == [False, True]
    assert only.logprobs[0].token == TOKENIZER.decode([72]).encode()
    assert Scores(3, True).arguments() == {"return_logprob": True, "top_logprobs_num": 3, "logprob_start_len": 0}


def asked(**fields: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    return worker_pb2.WorkerServiceGenerateRequest(request_id="r", **fields)


def sampling(**fields: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    return asked(sampling=inference_pb2.SamplingParams(**fields))


def held_to(**form: Any) -> worker_pb2.WorkerServiceGenerateRequest:
    return sampling(response_format=inference_pb2.ResponseFormat(**form))


def in_engine(request: worker_pb2.WorkerServiceGenerateRequest, tokens: int = 1) -> EngineRequest:
    return EngineRequest("r", [1] * tokens, sampling_params(request.sampling, FACTS))


REQUIRED = inference_pb2.ToolChoice(mode=inference_pb2.TOOL_CHOICE_MODE_REQUIRED)
DEMANDED = worker_pb2.ChatParsing(tools=CHAT.tools, tool_choice=REQUIRED)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(logprobs=inference_pb2.LogprobOptions(top=21)), "logprobs.top"),
        (asked(logprobs=inference_pb2.LogprobOptions(prompt=True)), "logprobs.prompt"),
        (asked(chat=worker_pb2.ChatParsing(tools=[inference_pb2.Tool()])), "chat.tools[0].name"),
        (asked(chat=worker_pb2.ChatParsing(tool_choice=REQUIRED)), "chat.tool_choice"),
        (sampling(seed=1, temperature=0.5), "sampling.seed"),
        (held_to(regex="(a"), "sampling.response_format.regex"),
        (held_to(grammar="rot ::= b"), "sampling.response_format.grammar"),
        (held_to(json_schema='{"type": "nonsense"}'), "sampling.response_format.json_schema"),
        (held_to(json_schema='{"properties": 3}'), "sampling.response_format.json_schema"),
        (held_to(json_schema='{"$ref": "#/nowhere"}'), "sampling.response_format.json_schema"),
        (held_to(json_schema='{"type": "array", "uniqueItems": true}'), "sampling.response_format.json_schema"),
    ],
)
async def test_what_cannot_be_done_is_refused_before_the_engine_sees_it(
    request_: worker_pb2.WorkerServiceGenerateRequest, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await check_wishes(request_, in_engine(request_, 2049), ENGINE)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (held_to(regex="a"), "sampling.response_format.regex"),
        (held_to(grammar='root ::= "a"'), "sampling.response_format.grammar"),
        (held_to(json_schema=PATTERN), "sampling.response_format.json_schema"),
        (held_to(json_schema='{"patternProperties": {"a": {}}}'), "sampling.response_format.json_schema"),
        (asked(chat=worker_pb2.ChatParsing(tools=[inference_pb2.Tool(name="f", parameters=PATTERN, strict=True)])),
         "chat.tools[0].parameters"),
        (asked(chat=worker_pb2.ChatParsing(tools=[inference_pb2.Tool(name="f", parameters=PATTERN)],
                                           tool_choice=REQUIRED)), "chat.tools[0].parameters"),
    ],
)  # fmt: skip
async def test_expressions_of_callers_are_taken_where_the_operator_says_so(
    request_: worker_pb2.WorkerServiceGenerateRequest, field: str
) -> None:
    with pytest.raises(InvalidRequestError, match="--allow-expressions") as caught:
        await check_wishes(request_, in_engine(request_, 2049), CAUTIOUS)
    assert caught.value.field == field


async def test_a_property_may_be_called_what_holds_expressions_elsewhere() -> None:
    named = json.dumps({"type": "object", "properties": {"pattern": {"type": "string"}}})
    await check_wishes(held_to(json_schema=named), in_engine(held_to(json_schema=named)), CAUTIOUS)
    free = asked(chat=worker_pb2.ChatParsing(tools=[inference_pb2.Tool(name="f", parameters=PATTERN)]))
    await check_wishes(free, in_engine(free), CAUTIOUS)
    # Of a choice by name the engine gets that tool alone.
    both = [
        inference_pb2.Tool(name="f", parameters=PATTERN, strict=True),
        inference_pb2.Tool(name="g", parameters=named),
    ]
    chosen = asked(chat=worker_pb2.ChatParsing(tools=both, tool_choice=inference_pb2.ToolChoice(name="g")))
    await check_wishes(chosen, in_engine(chosen), CAUTIOUS)
    chosen.chat.tool_choice.name = "f"
    with pytest.raises(InvalidRequestError, match=r"chat\.tools\[0\]\.parameters"):
        await check_wishes(chosen, in_engine(chosen), CAUTIOUS)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (held_to(regex="a"), "sampling.response_format"),
        (asked(logprobs=inference_pb2.LogprobOptions()), "logprobs"),
        (asked(chat=DEMANDED), "tool_choice"),
    ],
)
async def test_an_echo_says_what_it_cannot(request_: worker_pb2.WorkerServiceGenerateRequest, field: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{field}: cannot be had of an echo"):
        await check_wishes(request_, in_engine(request_), EchoEngine(TOKENIZER))
    await check_wishes(asked(chat=CHAT), in_engine(asked()), EchoEngine(TOKENIZER))
    assert parser_of(asked(chat=CHAT), [1], (), None).idle


async def test_what_can_be_done_reaches_the_engine() -> None:
    for form in (
        {"regex": "a+"},
        {"grammar": 'root ::= "a"'},
        {"json_object": True},
        {"json_schema": '{"type": "object"}'},
    ):
        await check_wishes(held_to(**form), in_engine(held_to(**form), 5000), ENGINE)
    await check_wishes(sampling(seed=1), in_engine(sampling(seed=1)), ENGINE)
    inner = EngineRequest("r", [1], {"temperature": 0.0})
    request = asked(chat=DEMANDED, logprobs=inference_pb2.LogprobOptions(top=2))
    made = granted(inner, request, parser_of(request, [1], (), HERMES))
    assert made.scores == Scores(2, False)
    assert "structural_tag" in made.sampling
    assert granted(inner, asked(), parser_of(asked(), [1], (), HERMES)) == inner


def test_sampling_reaches_the_engine_in_its_words() -> None:
    biased = inference_pb2.SamplingParams(
        logit_bias=[inference_pb2.LogitBias(token_id=5, bias=-100)], min_p=0.5, repetition_penalty=1.5,
        response_format=inference_pb2.ResponseFormat(regex="a"),
    )  # fmt: skip
    out = sampling_params(biased, FACTS)
    assert (out["logit_bias"], out["min_p"], out["repetition_penalty"], out["regex"]) == ({"5": -100.0}, 0.5, 1.5, "a")
    for form, name, value in (
        ({"json_object": True}, "json_schema", '{"type": "object"}'),
        ({"json_schema": "{}"}, "json_schema", "{}"),
        ({"grammar": "root ::= x"}, "ebnf", "root ::= x"),
    ):
        assert sampling_params(held_to(**form).sampling, FACTS)[name] == value


def test_a_grammar_that_the_engine_cannot_make_is_the_requests_fault() -> None:
    for reason in ("Failed to compile json grammar: no", "Grammar preprocessing timed out: x"):
        assert isinstance(abort(reason), InvalidRequestError)
    assert isinstance(abort("out of memory"), EngineError)
    with pytest.raises(
        InvalidRequestError, match=r"regex: cannot be used: Regex parsing error at position 3: The paren"
    ):
        check_grammar(inference_pb2.ResponseFormat(regex="(a"), expressions=True)


def written(folder: Path, **config: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def test_what_is_unset_is_as_the_model_has_it(tmp_path: Path) -> None:
    assert Defaults.read(tmp_path) == Defaults()
    greedy = Defaults.read(written(tmp_path, temperature=0.7, repetition_penalty=1.1, eos_token_id=[1, 2]))
    assert greedy == Defaults(repetition_penalty=1.1, ends=frozenset({1, 2}))
    shaped = {"do_sample": True, "top_p": 0.5, "top_k": 20, "min_p": 0.25}
    sampled = Defaults.read(written(tmp_path, **shaped))
    assert sampled == Defaults(1.0, 0.5, 20, 0.25)
    asked = inference_pb2.SamplingParams(top_p=1.0)
    sampled.fill(asked)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (1.0, 1.0, 20, 0.25)
    plain = inference_pb2.SamplingParams(temperature=0.0)
    sampled.fill(plain)
    assert plain == inference_pb2.SamplingParams(temperature=0.0)
    assert Defaults.read(written(tmp_path, do_sample=True, top_k=0, top_p=1.0)) == Defaults(1.0, 1.0)
    facts = ModelFacts.read(written(tiny_model(tmp_path), do_sample=True, temperature=0.5, eos_token_id=256))
    assert facts.ends == {256}
    assert sampling_params(inference_pb2.SamplingParams(), facts)["temperature"] == 0.5


@pytest.mark.parametrize("bad", [{"temperature": 3.0}, {"top_p": -1}, {"top_k": "many"}, {"min_p": [1]}])
def test_a_models_file_that_makes_no_sense_is_told_at_start(bad: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"generation_config\.json"):
        Defaults.read(written(tmp_path, do_sample=True, **bad))


def test_each_row_of_a_batch_has_its_own_seed_where_pytorch_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimpleNamespace(sampling_backend="pytorch")
    monkeypatch.setattr("sglang.srt.runtime_context.get_exec", lambda: SimpleNamespace(kernel=backend))
    requests = [SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed)) for seed in (5, None, None, 5)]

    def seeded(**fields: Any) -> Any:
        info = SimpleNamespace(**{"sampling_seed": None, "device": "cpu"} | fields)
        give_seeds(info, object, SimpleNamespace(reqs=requests), 257)
        return info.sampling_seed

    first, second, third, fourth = seeded().tolist()
    assert first == fourth == 5
    assert len({first, second, third}) == 3
    # SGLang's own are left alone, and a sampler that takes none gets none.
    assert seeded(sampling_seed="its own") == "its own"
    backend.sampling_backend = "flashinfer"
    assert seeded() is None
