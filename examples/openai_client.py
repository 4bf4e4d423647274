"""Asks a running service by OpenAI's client: a chat, a stream, a tool's call, a JSON schema, log-probabilities.

Beside `make run`, with the package `openai`: `python examples/openai_client.py [http://127.0.0.1:8080/v1]`.
"""

from __future__ import annotations

import json
import sys

from openai import OpenAI
from pydantic import BaseModel

ADDRESS = "http://127.0.0.1:8080/v1"
CAPITAL = "What is the capital of France?"
# What policy looks at: the risk domain that this service asks in.
DECLARED = {"domain": "support-chat"}


class Place(BaseModel):
    """What the answer is held to."""

    city: str
    country: str


def chat(client: OpenAI, model: str) -> str:
    """One answer, and the attention that it got."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": CAPITAL}], metadata=DECLARED, max_completion_tokens=24
    )
    # Beside OpenAI's own, an answer has this object.
    told = (answer.model_extra or {})["sparsity"]
    return f"{answer.choices[0].message.content} [{told['tier']}, {told['reason']}]"


def stream(client: OpenAI, model: str) -> str:
    """The same piece by piece."""
    pieces = []
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": CAPITAL}],
        metadata=DECLARED,
        max_completion_tokens=24,
        stream=True,
    ):
        pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    return " | ".join(pieces)


def tool_call(client: OpenAI, model: str) -> str:
    """A call that the model makes, its arguments held to their schema."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        metadata=DECLARED,
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells the weather of a city.",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string", "maxLength": 20}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                },
            }
        ],
        tool_choice="required",
    )
    calls = answer.choices[0].message.tool_calls or []
    told = [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.type == "function"]
    return ", ".join(f"{name}({arguments['city']!r})" for name, arguments in told)


def json_schema(client: OpenAI, model: str) -> str:
    """An answer that is an object of a class."""
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Where is the Eiffel Tower? Answer in JSON."}],
        metadata=DECLARED,
        response_format=Place,
    )
    return repr(answer.choices[0].message.parsed)


def logprobs(client: OpenAI, model: str) -> str:
    """How likely each token was, and what else could have come."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": CAPITAL}],
        metadata=DECLARED,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=2,
    )
    told = answer.choices[0].logprobs
    found = (told.content if told else None) or []
    return ", ".join(f"{token.token!r} {token.logprob:.2f} of {len(token.top_logprobs)}" for token in found)


def main() -> None:
    """Prints a line for each."""
    address = sys.argv[1] if len(sys.argv) > 1 else ADDRESS
    with OpenAI(base_url=address, api_key="any", timeout=120.0) as client:
        model = client.models.list().data[0].id
        print(f"model: {model}", flush=True)
        for ask in (chat, stream, tool_call, json_schema, logprobs):
            print(f"{ask.__name__}: {ask(client, model)}", flush=True)


if __name__ == "__main__":
    main()
