"""Options of `sparsity generate` about what an answer is like: its format, its tools, its log-probabilities."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from sparsity.v1 import inference_pb2
from sparsity_client import CalledTool, Grammar, JsonSchema, Logprobs, Regex, Request, ResponseFormat, Sampling, Tool
from sparsity_client.wire.requests import to_message
from sparsity_client.wire.values import Gathered
from sparsity_rpc.errors import InvalidRequestError

Schema = Annotated[Path | None, typer.Option("--json-schema", help="Answer in JSON that fits the schema in this file.")]
Pattern = Annotated[str | None, typer.Option("--regex", help="Answer with a text that this expression matches whole.")]
GrammarFile = Annotated[Path | None, typer.Option("--grammar", help="Answer by the grammar (EBNF) in this file.")]
Tools = Annotated[
    Path | None,
    typer.Option("--tools", help="JSON file of a list of tools: name, description, parameters (a schema), strict."),
]
Choice = Annotated[str | None, typer.Option("--tool-choice", help="auto, none, required, or a tool's name.")]
Top = Annotated[int | None, typer.Option("--logprobs", min=0, help="Log-probabilities, with so many alternatives.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampler.")]
Model = Annotated[str | None, typer.Option(help="The model that is to answer; the router's first one without it.")]


class Wishes(NamedTuple):
    """What was asked for by these options."""

    schema: Path | None = None
    pattern: str | None = None
    grammar: Path | None = None
    tools: Path | None = None
    choice: str | None = None
    top: int | None = None
    seed: int | None = None
    model: str | None = None

    def add_to(self, request: inference_pb2.GenerateRequest) -> None:
        """Puts it into a request.

        Raises:
            InvalidRequestError: naming what is no tool, or two formats at once.
        """
        tools = _tools(self.tools) if self.tools is not None else []
        choice: Any = self.choice
        if choice is not None and choice not in ("auto", "none", "required"):
            choice = CalledTool(choice)
        told = Request(
            "", tools=tools, tool_choice=choice, model=self.model,
            logprobs=None if self.top is None else Logprobs(self.top),
            sampling=Sampling(seed=self.seed, response_format=self._format()),
        )  # fmt: skip
        made = to_message(told)
        made.ClearField("chat")
        request.MergeFrom(made)

    def _format(self) -> ResponseFormat | None:
        given: list[ResponseFormat] = []
        if self.schema is not None:
            given.append(JsonSchema(_read("--json-schema", self.schema)))
        if self.pattern is not None:
            given.append(Regex(self.pattern))
        if self.grammar is not None:
            given.append(Grammar(_read("--grammar", self.grammar)))
        if len(given) > 1:
            raise InvalidRequestError.of("sampling.response_format", "is given more than once; give one of the three")
        return given[0] if given else None


def as_written(gathered: Gathered) -> dict[str, Any]:
    """What was answered, by the names that it is printed with; what there is none of is left out."""
    text, reasoning, calls, scores = gathered.text(), gathered.reasoning(), gathered.tool_calls(), gathered.logprobs()
    told: dict[str, Any] = {"reasoning": reasoning, "tool_calls": [asdict(call) for call in calls]}
    told["logprobs"] = [
        {"token": place.token.decode(errors="replace"), "logprob": place.logprob,
         "top": {other.token.decode(errors="replace"): other.logprob for other in place.top}}
        for place in scores
    ]  # fmt: skip
    return {"text": text} | {name: value for name, value in told.items() if value}


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError.of(option, f"cannot read {path}: {error}") from error


def _tools(path: Path) -> list[Tool]:
    try:
        return [Tool(**each) for each in json.loads(_read("--tools", path))]
    except (ValueError, TypeError) as error:
        raise InvalidRequestError.of("tools", f"{path} is no JSON list of tools: {error}") from error
