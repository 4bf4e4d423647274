"""Prompt options that commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from sparsity.v1 import inference_pb2
from sparsity_client.wire import Prompt, user_turn
from sparsity_policies.model import Tier
from sparsity_rpc.errors import InvalidRequestError

Text = Annotated[str | None, typer.Argument(help="The prompt; `-` reads standard input.")]
File = Annotated[Path | None, typer.Option("--file", help="Read the prompt from a file.")]
Domain = Annotated[str | None, typer.Option(help="Risk domain, such as rag or medical.")]
Task = Annotated[str | None, typer.Option(help="What is asked, such as qa or summarize.")]
Flag = Annotated[list[str] | None, typer.Option("--flag", help="Flag the request; repeat for more.")]
Tenant = Annotated[str | None, typer.Option(help="The tenant, for rules, overrides and rollouts.")]
Session = Annotated[str | None, typer.Option(help="The session, which keeps its side of a rollout.")]
MaxTier = Annotated[str | None, typer.Option(help="Accept no tier sparser than dense, moderate or aggressive.")]
Raw = Annotated[bool, typer.Option(help="Send plain text, not a chat message.")]
DenseReasoning = Annotated[bool, typer.Option("--dense-reasoning", help="Ask that reasoning spans decode densely.")]


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt from an argument, a file or standard input.

    Raises:
        InvalidRequestError: when there is none, two, or it is not UTF-8.
    """
    if (text is None) == (file is None):
        raise InvalidRequestError.of("prompt", "give it as an argument, as - for standard input, or with --file")
    try:
        if file is not None:
            return file.read_bytes().decode("utf-8")
        return sys.stdin.buffer.read().decode("utf-8") if text == "-" else text or ""
    except OSError as error:
        raise InvalidRequestError.of("--file", f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError.of(
            "prompt", f"is not UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from error


def read_tier(word: str | None, option: str = "--max-tier") -> inference_pb2.Tier.ValueType | None:
    """A tier from its word.

    Raises:
        InvalidRequestError: when there is no such tier.
    """
    if word is None:
        return None
    for tier in Tier:
        if tier.word == word:
            return tier.wire
    raise InvalidRequestError.of(option, f"must be one of {', '.join(t.word for t in Tier)}, not {word!r}")


def as_sent(prompt: str, raw: bool) -> Prompt:
    """The prompt as commands send it: a chat's user message, which the model was trained to answer, or plain text."""
    return prompt if raw or not prompt else user_turn(prompt)
