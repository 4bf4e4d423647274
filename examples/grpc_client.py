"""Asks a running service by gRPC: a chat, a stream, a tool's call, a JSON schema, log-probabilities.

Beside `make run`, with the package `sparsity-client` (`./client`): `python examples/grpc_client.py [127.0.0.1:7000]`.
"""

from __future__ import annotations

import json
import sys

from sparsity_client import Client, JsonSchema, Logprobs, Message, Request, Sampling, Tool

ADDRESS = "127.0.0.1:7000"
DOMAIN = "support-chat"
CAPITAL = Request("What is the capital of France?", domain=DOMAIN, sampling=Sampling(max_new_tokens=24))
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


def chat(client: Client) -> str:
    """One answer, and the attention that it got."""
    answer = client.generate(CAPITAL, timeout=120)
    return f"{answer.text} [{answer.decision.tier.word}, {answer.decision.reason}]"


def stream(client: Client) -> str:
    """The same piece by piece."""
    with client.stream(CAPITAL, timeout=120) as pieces:
        return " | ".join(piece.text for piece in pieces if piece.text)


def tool_call(client: Client) -> str:
    """A call that the model makes, its arguments held to their schema."""
    asked = Message("user", "How is the weather in Paris?")
    weather = Tool("weather", "Tells the weather of a city.", CITY)
    answer = client.generate(Request((asked,), domain=DOMAIN, tools=(weather,), tool_choice="required"), timeout=120)
    return ", ".join(f"{call.name}({json.loads(call.arguments)['city']!r})" for call in answer.tool_calls)


def json_schema(client: Client) -> str:
    """An answer that is an object of a schema."""
    held = Sampling(max_new_tokens=48, response_format=JsonSchema(CITY))
    text = client.generate(Request("Where is the Eiffel Tower?", domain=DOMAIN, sampling=held), timeout=120).text
    return repr(json.loads(text))


def logprobs(client: Client) -> str:
    """How likely each token was, and what else could have come."""
    few = Sampling(max_new_tokens=6)
    asked = Request("What is the capital of France?", domain=DOMAIN, sampling=few, logprobs=Logprobs(top=2))
    found = client.generate(asked, timeout=120).logprobs
    # Only a prompt's first token has no probability.
    told = [(token.token.decode(errors="replace"), token.logprob or 0.0, len(token.top)) for token in found]
    return ", ".join(f"{text!r} {logprob:.2f} of {count}" for text, logprob, count in told)


def main() -> None:
    """Prints a line for each."""
    address = sys.argv[1] if len(sys.argv) > 1 else ADDRESS
    with Client(address) as client:
        for ask in (chat, stream, tool_call, json_schema, logprobs):
            print(f"{ask.__name__}: {ask(client)}", flush=True)


if __name__ == "__main__":
    main()
