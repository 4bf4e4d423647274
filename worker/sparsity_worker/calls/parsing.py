"""Takes the text of a chat's answer apart as it comes: what the model thinks, what it says, and what it calls."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.tools import demanded, shown

from sparsity_worker.calls.parsers import Parsers

# Steps that a detector may be behind when the text ends: the name of a call, its arguments, its end.
_LATE_STEPS: Final = 3
log = logging.getLogger("sparsity.worker")


class Parsed(NamedTuple):
    """What came since the last time.

    Attributes:
        text: of the answer.
        reasoning: of what the model thinks.
        calls: parts of calls.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[inference_pb2.ToolCallDelta, ...] = ()


class ToolCalls:
    """Calls of tools in one answer.

    Args:
        parser: name of SGLang's that knows how the model writes them; empty for none.
        chat: what the model may or must call.

    Attributes:
        constraint: sampling parameters that hold the answer to calls that are demanded, or to strict tools' schemas.

    Raises:
        InvalidRequestError: when nothing here can read its calls.
    """

    def __init__(self, parser: str, chat: worker_pb2.ChatParsing) -> None:
        from sglang.srt.entrypoints.openai.protocol import ToolChoice, ToolChoiceFuncName
        from sglang.srt.function_call.function_call_parser import FunctionCallParser
        from sglang.srt.function_call.json_array_parser import JsonArrayParser

        if not parser:
            problem = "cannot be told apart from the text of this model's answers; start its workers with --tool-parser"
            raise InvalidRequestError.of("tools", problem)
        must, name = demanded(chat.tool_choice), chat.tool_choice.name
        self._tools = [_tool(tool, must) for tool in chat.tools if not name or tool.name == name]
        choice: Any = ToolChoice(function=ToolChoiceFuncName(name=name)) if name else "required" if must else "auto"
        reader = FunctionCallParser(self._tools, parser, tool_choice=choice if must else None)
        held = reader.get_structure_constraint(choice)
        if must and held is None:
            raise InvalidRequestError.of(
                "tool_choice", f"demands a call, to which parser {parser} cannot hold the model"
            )
        strict = next((tool.name for tool in chat.tools if tool.strict), None)
        if strict is not None and held is None:
            problem = f"{strict}: parser {parser} cannot hold calls to its parameters; leave `strict` out"
            raise InvalidRequestError.of("tools", problem)
        self.constraint = _parameters(held)
        array = must and not reader.owns_tool_format()
        self._detector: Any = JsonArrayParser() if array else reader.detector
        self._ids: dict[int, str] = {}

    @property
    def any(self) -> bool:
        """Whether something was called."""
        return bool(self._ids)

    def push(self, text: str) -> Parsed:
        """Adds text: that of a token, for a detector takes one step at a time."""
        found = self._detector.parse_streaming_increment(text, self._tools)
        parts = tuple(self._parts(found.calls))
        # Between calls there are line breaks that are nobody's words.
        between = self.any and not found.normal_text.strip()
        return Parsed("" if between else found.normal_text, "", parts)

    def finish(self, *, cut_off: bool) -> Parsed:
        """Releases what was held back; arguments that were cut off are not closed."""
        late = [each for each in (self.push("") for _ in range(_LATE_STEPS)) if each.text or each.calls]
        found = self._detector.finish(self._tools)
        parts = [*(part for each in late for part in each.calls), *self._parts(found.calls)]
        parts += self._rest(cut_off=cut_off)
        return Parsed("".join(each.text for each in late) + found.normal_text, "", tuple(parts))

    def _parts(self, calls: Iterable[Any]) -> Iterable[inference_pb2.ToolCallDelta]:
        for call in calls:
            part = inference_pb2.ToolCallDelta(index=call.tool_index, arguments=call.parameters or "")
            if call.tool_index not in self._ids:
                self._ids[call.tool_index] = part.id = f"call_{uuid.uuid4().hex[:24]}"
                part.name = call.name or ""
            yield part

    def _rest(self, *, cut_off: bool) -> Iterable[inference_pb2.ToolCallDelta]:
        """What was not passed on of the last call's arguments: detectors look at what came before the last text."""
        whole, sent = (getattr(self._detector, name, None) for name in ("prev_tool_call_arr", "streamed_args_for_tool"))
        if not whole or not sent or not 0 < len(whole) <= len(sent) or len(whole) - 1 not in self._ids:
            return
        last = whole[-1].get("arguments", {})
        wanted, had = last if isinstance(last, str) else json.dumps(last, ensure_ascii=False), sent[len(whole) - 1]
        wanted = wanted.rstrip('"]}') if cut_off else wanted
        if wanted.startswith(had) and wanted != had:
            yield inference_pb2.ToolCallDelta(index=len(whole) - 1, arguments=wanted[len(had) :])


class Reasoning:
    """What a model thinks before it answers.

    Args:
        parser: name of SGLang's that knows how it marks that.
        opened: whether the prompt ends within it; None leaves it to the parser.
        tools: whether calls are looked for in what it says then.
    """

    def __init__(self, parser: str, opened: bool | None, *, tools: bool) -> None:
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        self._detector: Any = ReasoningParser(
            parser, stream_reasoning=True, force_reasoning=opened, tool_call_parser_active=tools
        ).detector

    @property
    def goes_on(self) -> bool:
        """Whether the next token belongs to it."""
        return bool(getattr(self._detector, "_in_reasoning", False))

    def push(self, text: str) -> Parsed:
        """Adds text."""
        found = self._detector.parse_streaming_increment(text)
        return Parsed(found.normal_text or "", found.reasoning_text or "")

    def finish(self) -> Parsed:
        """Releases what was held back."""
        found = self._detector.finish()
        return Parsed(found.normal_text or "", found.reasoning_text or "")


class ChatParser:
    """Both, one after the other.

    Args:
        parsers: of the model.
        chat: what the model may or must call; None for what is no chat: its text is left as it is.
        opened: whether the prompt ends within a span of reasoning; None where its marks are not known.
        formatted: whether the answer is held to a format, which leaves no room for thoughts.

    Raises:
        InvalidRequestError: when nothing here can read its calls.
    """

    def __init__(
        self,
        parsers: Parsers,
        chat: worker_pb2.ChatParsing | None,
        opened: bool | None = None,
        *,
        formatted: bool = False,
    ) -> None:
        tools = shown(chat.tools, chat.tool_choice) if chat is not None else ()
        self.calls = ToolCalls(parsers.tools, chat) if chat is not None and tools else None
        held = formatted or (chat is not None and demanded(chat.tool_choice))
        thinks = chat is not None and parsers.reasoning and not held
        self.reasoning = Reasoning(parsers.reasoning, opened, tools=self.calls is not None) if thinks else None
        self._broken = False

    @property
    def idle(self) -> bool:
        """Whether it leaves every text as it is."""
        return self.calls is None and self.reasoning is None

    def push(self, text: str, *, last: bool = False, cut_off: bool = False) -> Parsed:
        """Adds text.

        Args:
            text: what came.
            last: whether nothing more comes.
            cut_off: whether it ends because there was no room for more.
        """
        if self._broken or self.idle:
            return Parsed(text)
        try:
            return self._push(text, last=last, cut_off=cut_off)
        except Exception:  # parsers of other people's, over what a model wrote
            log.exception("an answer could not be taken apart; the rest of it is passed on as text")
            self._broken = True
            return Parsed(text)

    def _push(self, text: str, *, last: bool, cut_off: bool) -> Parsed:
        thought = [Parsed(text)]
        if self.reasoning is not None:
            thought = [self.reasoning.push(text)] if text else []
            thought += [self.reasoning.finish()] if last else []
        said = "".join(each.text for each in thought)
        reasoning = "".join(each.reasoning for each in thought) if self.reasoning is not None else ""
        if self.calls is None:
            return Parsed(said, reasoning)
        told = [self.calls.push(said)] if said else []
        told += [self.calls.finish(cut_off=cut_off)] if last else []
        return Parsed(
            "".join(each.text for each in told), reasoning, tuple(part for each in told for part in each.calls)
        )


def _tool(tool: inference_pb2.Tool, must: bool) -> Any:
    from sglang.srt.entrypoints.openai.protocol import Function, Tool

    parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    function = Function(name=tool.name, description=tool.description, parameters=parameters, strict=tool.strict or must)
    return Tool(function=function)


def _parameters(held: Any) -> dict[str, Any]:
    """SGLang's sampling parameters of a constraint of its parsers."""
    if held is None:
        return {}
    kind, value = held
    if kind == "full_assistant_ebnf":
        return {"ebnf": value, "ebnf_full_assistant": True}
    document = value.model_dump(by_alias=True) if hasattr(value, "model_dump") else value
    return {kind: document if isinstance(document, str) else json.dumps(document)}
