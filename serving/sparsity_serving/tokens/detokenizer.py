"""Turns a stream of token ids into a stream of whole characters."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step added.

    Attributes:
        text: characters that are safe to send.
        stopped: whether a stop text was reached; the text ends before it.
    """

    text: str
    stopped: bool = False


@dataclass(slots=True)
class IncrementalDetokenizer:
    """Decodes token by token; holds back bytes of unfinished characters and what may begin a stop text.

    Attributes:
        tokenizer: the model's tokenizer.
        stops: texts that end generation.
        shows_control: whether control tokens are text, too.
    """

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    shows_control: bool = False
    _stream: DecodeStream = field(init=False)
    _ids: list[int] = field(default_factory=list)
    _decoded: int = 0
    _held: str = ""

    def __post_init__(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=not self.shows_control)

    def push(self, token_ids: list[int]) -> Piece:
        """Adds tokens."""
        added = "".join(self._stream.step(self.tokenizer, token) or "" for token in token_ids)
        self._ids += token_ids
        self._decoded += len(added)
        return self._release(added, final=False)

    def finish(self) -> Piece:
        """Releases what was held back; bytes that never became a character come out as U+FFFD."""
        rest = self.tokenizer.decode(self._ids, skip_special_tokens=not self.shows_control)[self._decoded :]
        self._decoded += len(rest)
        return self._release(rest, final=True)

    def _release(self, added: str, *, final: bool) -> Piece:
        text = self._held + added
        # The one that is whole first, as if the text came letter by letter: steps of the engine change nothing.
        places = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return Piece(text[: min(places)[1]], stopped=True)
        keep = 0 if final else max((overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return Piece(text[: len(text) - keep])


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
