"""Text that stands in another form: escaped, or encoded in base64."""

from __future__ import annotations

import binascii
import html
import re
import string
from functools import cache
from typing import Final
from urllib.parse import unquote_to_bytes

import numpy as np

from sparsity_policies.matching.expressions import ALWAYS, Expressions, compile_expressions
from sparsity_policies.matching.rewriting import Step, Substitution, Traced, spread

ALPHABET: Final = f"{string.ascii_letters}{string.digits}+/=_-"
_RUN: Final = re.compile(b"[a-zA-Z0-9+/_-]+")
_FEED: Final = re.compile(b"\r?\n")
_LEAST: Final = 16
# Lines of text that a mail or a certificate is broken into.
_LINE: Final = 32
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
# Bytes of texts in UTF-8.
_PRINTED: Final = b"\t\n\r" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
# Three spaces: no two runs become one phrase.
_APART: Final = b"ICAg"


def _json(found: str) -> str:
    return bytes.fromhex(found.replace("\\u", "")).decode("utf-16-be", "replace")


def _percent(found: str) -> str:
    try:
        return unquote_to_bytes(found).decode()
    except UnicodeDecodeError:
        return found


# The first letter of each is found by far faster than any of the three.
ESCAPES: Final[tuple[Step, ...]] = (
    Substitution(r"\\u[0-9A-Fa-f]{4}(?:\\u[0-9A-Fa-f]{4})*", _json),
    Substitution(r"%[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2})*", _percent),
    Substitution(r"&(?:#[0-9]{2,7};?|#[xX][0-9A-Fa-f]{2,6};?|[A-Za-z][A-Za-z0-9]{1,31};)", html.unescape),
)


@cache
def _runs() -> Expressions:
    """Finds the 16th character of each run, once."""
    return Expressions(compile_expressions([f"(?:^|[^{ALPHABET}])[{ALPHABET}]{{{_LEAST}}}"], ALWAYS))


class Base64:
    """What runs of base64 say, in the order in which they stand; decoded once, never again."""

    def __call__(self, text: str) -> str:
        """The text of all runs."""
        return _decoded([run for run, _, _ in _encoded(text)])

    def traced(self, text: str) -> Traced:
        """The same, with where it comes from in ``text``: each character from all of its run."""
        texts, origins = list[str](), [np.arange(0)]
        for run, start, end in _encoded(text):
            texts.append(_decoded([run]))
            origins.append(spread(len(texts[-1]), start, end))
        return Traced("".join(texts), np.concatenate(origins))


def _encoded(text: str) -> list[tuple[bytes, int, int]]:
    """Runs that look like base64, each with where it begins and ends; lines that belong together are one."""
    # A byte a character, whatever it is.
    data = text.encode("latin-1", "replace")
    found: list[tuple[bytes, int, int]] = []
    last = 0
    for _, sixteenth in _runs().matches(data):
        start = sixteenth - _LEAST
        if start < last or not _is_text(data[start:sixteenth]) or not (run := _RUN.match(data, start)):
            continue
        lines, last = [run[0]], run.end()
        while len(lines[-1]) >= _LINE and len(lines[-1]) % 4 == 0 and (feed := _FEED.match(data, last)):
            if not (run := _RUN.match(data, feed.end())):
                break
            lines.append(run[0])
            last = run.end()
        found.append((b"".join(lines), start, last))
    return found


def _is_text(run: bytes) -> bool:
    """Whether a run, told by its first characters, is text: identifiers and pictures are none."""
    run = run.partition(b"=")[0]
    data = binascii.a2b_base64(run[: len(run) // 4 * 4].translate(_URL_SAFE))
    try:
        return not data.translate(None, _PRINTED) and bool(data.decode())
    except UnicodeDecodeError as error:
        # A character that is cut off is no fault.
        return error.start > len(data) - 4


def _decoded(runs: list[bytes]) -> str:
    padded = (run + b"A" * (-len(run) % 4) + _APART for run in runs)
    return binascii.a2b_base64(b"".join(padded).translate(_URL_SAFE)).decode("utf-8", "ignore")
