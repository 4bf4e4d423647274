"""A prompt as it is tokenized, and what the scan of it found."""

from __future__ import annotations

import time
from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.matching.locating import Match, locate
from sparsity_policies.matching.readings import readings
from sparsity_policies.matching.scan import ScanResult
from sparsity_policies.matching.signs import Signs
from sparsity_serving.fields.response_format import format_text
from sparsity_serving.metrics.metering import CLASSIFY_SECONDS, histogram, meter_of

from sparsity_router.prompts.chats.chat import read_chat
from sparsity_router.prompts.prompt import Prompt
from sparsity_router.prompts.tokens import ModelTokenizer

_NOTHING = ScanResult(frozenset(), frozenset(), 0)
_meter = meter_of("sparsity.router")
_scanning = histogram(_meter, "sparsity.router.scan.duration", "s", "Scan of one prompt.", CLASSIFY_SECONDS)


class Opened(NamedTuple):
    """A prompt as far as it is known without counting.

    Attributes:
        ids: token ids, where its caller sent them.
        text: what is to be tokenized; empty where the ids are known.
        special: whether the model puts something around it.
        size: bytes that are tokenized.
        words: what its caller wrote, and then what the answer is held to.
        length: bytes of what is scanned as it was written: all that a scan must have looked at.
        readings: what is scanned, in UTF-8: what was written, and what it may be read as; none when that is not known.
    """

    ids: list[int]
    text: str
    special: bool
    size: int
    words: str
    length: int
    readings: tuple[bytes, ...]


class Scanned(NamedTuple):
    """A prompt with what was found in it.

    Attributes:
        opened: the prompt.
        result: of the scan.
        problem: what kept the scan from an answer; empty when nothing did.
    """

    opened: Opened
    result: ScanResult
    problem: str


def open_prompt(prompt: Prompt, request: inference_pb2.GenerateRequest, tokenizer: ModelTokenizer) -> Opened:
    """Decodes token ids, renders a chat, and leaves text as it is.

    Raises:
        InvalidRequestError: when the model has no chat template, or the messages do not fit it.
    """
    if prompt.kind == "token_ids":
        ids = list(request.token_ids.ids)
        words = tokenizer.decode(ids)
        data = words.encode()
        scanned = b"\n".join((data, prompt.data)) if prompt.data else data
        return Opened(ids, "", False, prompt.size, _with(words, prompt.form), len(scanned), _readings(scanned))
    read = _readings(prompt.data, prompt.signs)
    words = _with(prompt.text, prompt.form)
    if prompt.kind == "text":
        return Opened([], prompt.text, True, prompt.size, words, len(prompt.data), read)
    assert prompt.chat is not None
    rendered = tokenizer.render(prompt.chat, plain=not prompt.control)
    return Opened([], rendered, False, len(rendered.encode()), words, len(prompt.data), read)


def _with(words: str, form: str) -> str:
    return f"{words}\n{form}" if form else words


def _readings(data: bytes, found: Signs | None = None) -> tuple[bytes, ...]:
    try:
        return readings(data, found)
    except ValueError:
        return ()


def located(request: inference_pb2.GenerateRequest, snapshot: Snapshot, tokenizer: ModelTokenizer) -> list[Match]:
    """Where the scan finds something in what a caller wrote; nowhere when it cannot finish: the decision says so."""
    if request.WhichOneof("prompt") == "token_ids":
        text = tokenizer.decode_written(list(request.token_ids.ids))
    else:
        text = request.text or "\n".join(read_chat(request).written())
    text = _with(text, format_text(request.sampling))
    try:
        return locate(text, snapshot.scanner, tokenizer.control.hidden(text))
    except ValueError:
        return []


def scan(opened: Opened, snapshot: Snapshot) -> Scanned:
    """Scans a prompt for the detection of ``snapshot``."""
    if not opened.readings:
        return Scanned(opened, _NOTHING, "scan failed: the text's forms are not known")
    started = time.monotonic()
    try:
        result = snapshot.scanner.scan(opened.readings)
    except ValueError as error:
        return Scanned(opened, _NOTHING, str(error))
    _scanning.record(time.monotonic() - started)
    return Scanned(opened, result, "")
