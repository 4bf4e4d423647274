"""A model's chat template, rendered as transformers renders it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2 import meta
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError

from sparsity_router.prompts.chats.chat import Chat
from sparsity_router.prompts.chats.tool_prompt import with_tools_written_out

# What a caller does not set by chat_template_kwargs: it has fields of its own, or is the model's.
_OWN: Final = frozenset(
    {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "strftime_now"}
)


class ChatTemplate:
    """One template.

    Args:
        source: in Jinja, which stays readable.
        special: tokens of the model that it names.

    Raises:
        ConfigurationError: when it is no template.
    """

    def __init__(self, source: str, special: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        environment.filters["tojson"] = _to_json
        try:
            reads = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigurationError(f"--model: its chat template cannot be read: {error}") from error
        self.source = source
        self._special = special
        self._variables = frozenset(reads) - _OWN
        self._knows_tools = "tools" in reads
        self._knows_developers = "developer" in source

    @classmethod
    def read(cls, model_path: Path) -> ChatTemplate | None:
        """The template of a model's folder; None where it has none.

        Raises:
            ConfigurationError: when it is no template.
        """
        config_path, template_path = model_path / "tokenizer_config.json", model_path / "chat_template.jinja"
        config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        source = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
        special = {name: config[name] for name in ("bos_token", "eos_token") if isinstance(config.get(name), str)}
        return cls(source, special) if isinstance(source, str) else None

    def render(self, chat: Chat, as_text: Callable[[str], str] | None) -> str:
        """The chat as the model expects it, up to where it answers.

        Args:
            chat: what its caller wrote.
            as_text: makes of each text one that is no control token of the model; None where there is none.

        Raises:
            InvalidRequestError: when the template refuses it, or does not read a variable.
        """
        for name in chat.variables:
            if name not in self._variables:
                known = ", ".join(sorted(self._variables)) or "none"
                field = name if name == "reasoning_effort" else f"chat_template_kwargs.{name[:64]}"
                raise InvalidRequestError.of(field, f"is not read by the model's chat template; it reads {known}")
        # What callers wrote, whichever text of a tool or of its arguments it is.
        messages, tools, variables = chat if as_text is None else (_texts(part, as_text) for part in chat)
        if not self._knows_developers:
            messages = [each | {"role": "system"} if each["role"] == "developer" else each for each in messages]
        if not self._knows_tools:
            messages, tools = with_tools_written_out(messages, tools), []
        try:
            return self._template.render(
                **self._special, **variables, messages=messages, tools=tools or None, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise InvalidRequestError.of("chat.messages", f"the model's chat template refuses them: {error}") from error
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            # Templates are programs: what this one makes of a variable of a strange kind is its caller's mistake.
            problem = f"the model's chat template fails on them: {type(error).__name__}: {error}"
            raise InvalidRequestError.of("chat.messages", problem) from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which trainers mark what the assistant says: its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _texts(part: Any, as_text: Callable[[str], str]) -> Any:
    if isinstance(part, str):
        return as_text(part)
    if isinstance(part, dict):
        return {as_text(name): _texts(value, as_text) for name, value in part.items()}
    return [_texts(each, as_text) for each in part] if isinstance(part, list) else part


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
    """As transformers has it: Jinja's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
