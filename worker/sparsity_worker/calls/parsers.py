"""Which of SGLang's parsers take a model's answers apart, by its chat template or as the operator says."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

from sparsity_rpc.errors import ConfigurationError
from tokenizers import Tokenizer

from sparsity_worker.config import WorkerConfig

AUTO: Final = "auto"
NONE: Final = "none"
# For templates that read no tools: routers then write them out in that form.
_WRITTEN_OUT: Final = "hermes"


class Parsers(NamedTuple):
    """Names of parsers; empty for none.

    Attributes:
        tools: of calls.
        reasoning: of what the model thinks.
    """

    tools: str = ""
    reasoning: str = ""

    @classmethod
    def of(cls, config: WorkerConfig, tokenizer: Tokenizer) -> Parsers:
        """The parsers of a worker's model.

        Raises:
            ConfigurationError: when an option names one that SGLang does not have.
        """
        # They take seconds to import, and an echo must do without.
        from sglang.srt.function_call.parser_names import TOOL_CALL_PARSER_NAMES
        from sglang.srt.parser.reasoning_parser_names import REASONING_PARSER_NAMES

        tools, reasoning = config.tool_parser, config.reasoning_parser
        for option, name, known in (
            ("--tool-parser", tools, TOOL_CALL_PARSER_NAMES),
            ("--reasoning-parser", reasoning, REASONING_PARSER_NAMES),
        ):
            if name not in (AUTO, NONE, *known):
                raise ConfigurationError(f"{option}: {name} is none of {AUTO}, {NONE}, {', '.join(sorted(known))}")
        if AUTO in (tools, reasoning):
            told = _by_template(chat_template(config.model_path), tokenizer)
            tools, reasoning = (
                own if own != AUTO else auto for own, auto in zip((tools, reasoning), told, strict=True)
            )
        found = cls(*("" if name == NONE else name for name in (tools, reasoning)))
        found.load()
        return found

    def load(self) -> None:
        """Imports what the parsers need, so that no request waits for it."""
        if self.tools:
            import_module("sglang.srt.function_call.function_call_parser")
        if self.reasoning:
            import_module("sglang.srt.parser.reasoning_parser")


def chat_template(model_path: Path) -> str:
    """The source of a model's chat template; empty where it has none."""
    if (path := model_path / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    config = model_path / "tokenizer_config.json"
    source = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return source if isinstance(source, str) else ""


def _by_template(template: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """Names of the parsers of tools and of reasoning that a template tells of; `none` where it tells of none."""
    from sglang.srt.parser.template_detection import (
        detect_reasoning_parser,
        detect_reasoning_pattern,
        detect_tool_call_parser,
    )

    if not template:
        return NONE, NONE
    forced, toggle = detect_reasoning_pattern(template)
    reasoning = detect_reasoning_parser(template, tokenizer, toggle, forced) or NONE
    tools = detect_tool_call_parser(template, tokenizer, toggle, forced) or _by_marks(template, tokenizer)
    return tools, reasoning


def _by_marks(template: str, tokenizer: Tokenizer) -> str:
    """The parser of calls whose marks a template or a vocabulary shows, of families that SGLang's rules leave out."""
    if "tools" not in template or "<tool_call>" in template:
        return _WRITTEN_OUT
    marks = {"[TOOL_CALLS]": "mistral", "<|python_tag|>": "llama3"}
    shown = (name for mark, name in marks.items() if mark in template or tokenizer.token_to_id(mark) is not None)
    return next(shown, NONE)
