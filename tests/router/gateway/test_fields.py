"""The table of fields: complete by OpenAI's own types, the same in docs/http.md, and true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from sparsity_router.gateway.asking import Asked, Field, Use, read
from sparsity_router.gateway.declared import DECLARATIONS, TIMEOUT
from sparsity_router.gateway.fields import CHAT, COMPLETION
from sparsity_router.gateway.prompts import MESSAGE
from sparsity_rpc.errors import InvalidRequestError

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "http.md").read_text(encoding="utf-8")
TABLES = {"chat": CHAT, "completion": COMPLETION, "message": MESSAGE}
# Of a union of two types of parameters, which differ by `stream`.
OPENAI = {
    "chat": {*chat_create_params.CompletionCreateParamsBase.__annotations__, "stream"},
    "completion": {*completion_create_params.CompletionCreateParamsBase.__annotations__, "stream"},
    "message": {
        name
        for kind in (
            ChatCompletionSystemMessageParam,
            ChatCompletionUserMessageParam,
            ChatCompletionAssistantMessageParam,
            ChatCompletionToolMessageParam,
        )
        for name in kind.__annotations__
    },
}
# What other servers take and OpenAI does not, or what answers have and requests do not.
SAMPLING = {"top_k", "min_p", "repetition_penalty", "regex", "ebnf", "ignore_eos", "priority"}
OURS = {"chat": SAMPLING | {"chat_template_kwargs"}, "completion": SAMPLING | {"metadata"}}
OURS["message"] = {"annotations", "reasoning_content", "reasoning", "cache_control"}


@pytest.mark.parametrize("table", TABLES)
def test_every_field_of_openai_is_in_the_table(table: str) -> None:
    assert TABLES[table].keys() == OPENAI[table] | OURS[table]


def rows(fields: dict[str, Field]) -> list[str]:
    """The table, as the page has it."""
    return [f"| `{field.name}` | {field.use.value} | {field.said} |" for field in fields.values()]


def on_the_page(title: str) -> list[str]:
    _, _, after = PAGE.partition(f"\n{title}\n")
    lines = after.split("\n#")[0].splitlines()
    return [line for line in lines if line.startswith("|")][2:]


@pytest.mark.parametrize(
    ("title", "fields"),
    [("### `/v1/chat/completions`", CHAT), ("### A message", MESSAGE), ("### `/v1/completions`", COMPLETION)],
)
def test_the_page_has_the_table(title: str, fields: dict[str, Field]) -> None:
    assert on_the_page(title) == rows(fields)


def test_the_page_has_what_is_declared() -> None:
    expected = [f"| `{name}` | `{each.header(name)}` | {each.said} |" for name, each in DECLARATIONS.items()]
    assert on_the_page("## What policy looks at")[: len(expected)] == expected
    assert f"`{TIMEOUT}`" in PAGE


@pytest.mark.parametrize("table", TABLES)
def test_what_is_refused_is_refused_by_name_and_what_asks_for_nothing_is_not(table: str) -> None:
    for name, field in TABLES[table].items():
        if field.use is Use.TAKEN:
            assert field.put is not None
            continue
        asked = Asked()
        read(TABLES[table], dict.fromkeys([name]), asked)
        for neutral in field.neutral:
            read(TABLES[table], {name: neutral}, asked)
        if field.use is Use.REFUSED:
            for value in ("anything", 7, True not in field.neutral, [{}], {"a": 1}):
                with pytest.raises(InvalidRequestError) as caught:
                    read(TABLES[table], {name: value}, asked)
                assert (caught.value.field, field.said in str(caught.value)) == (name, True)
        else:
            read(TABLES[table], {name: "anything"}, asked)
        assert asked == Asked(), "nothing came of it"


@pytest.mark.parametrize(
    ("name", "value", "path", "wanted"),
    [
        ("temperature", 0.5, "sampling.temperature", 0.5),
        ("top_p", 1, "sampling.top_p", 1.0),
        ("frequency_penalty", -1, "sampling.frequency_penalty", -1.0),
        ("presence_penalty", 0.5, "sampling.presence_penalty", 0.5),
        ("max_tokens", 5, "sampling.max_new_tokens", 5),
        ("stop", "x", "sampling.stop", ["x"]),
        ("seed", 2**63 - 1, "sampling.seed", 2**63 - 1),
        ("top_k", 40, "sampling.top_k", 40),
        ("min_p", 0.5, "sampling.min_p", 0.5),
        ("repetition_penalty", 1.5, "sampling.repetition_penalty", 1.5),
        ("regex", "a+", "sampling.response_format.regex", "a+"),
        ("ebnf", "root ::= 'a'", "sampling.response_format.grammar", "root ::= 'a'"),
        ("ignore_eos", True, "sampling.ignore_eos", True),
        ("priority", 3, "priority", 3),
    ],
)
def test_what_is_taken_arrives(name: str, value: Any, path: str, wanted: Any) -> None:
    for fields in (CHAT, COMPLETION):
        asked = Asked()
        read(fields, {name: value}, asked)
        found: Any = asked.message
        for part in path.split("."):
            found = getattr(found, part)
        assert (list(found) if isinstance(wanted, list) else found) == wanted
        assert asked.called(path) == name
