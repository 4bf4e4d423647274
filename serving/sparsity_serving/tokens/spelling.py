"""What single tokens are in a text, to the byte."""

from __future__ import annotations

import re
from typing import Final

from tokenizers import Tokenizer

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
# SentencePiece's word for a space.
_SPACE: Final = "\u2581"


def _byte_symbols() -> dict[str, int]:
    """The character that byte-level tokenizers write each byte as (GPT-2): printable ones as themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in symbols.values()]
    return symbols | {chr(256 + place): byte for place, byte in enumerate(others)}


class Spelling:
    """Tokens of one model.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        # Only these write a byte as a character of another code.
        self._symbols = _byte_symbols() if "ByteLevel" in str(tokenizer.decoder) else {}

    def __getitem__(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        word = self._tokenizer.id_to_token(token_id)
        if word is None:
            return b""
        if self._symbols:
            return bytes(self._symbols[character] for character in word if character in self._symbols)
        if found := _BYTE.fullmatch(word):
            return bytes([int(found[1], 16)])
        return word.replace(_SPACE, " ").encode()
