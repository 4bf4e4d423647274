"""Text that everybody with Python has: its language reference, the documentation of its modules, and their source.

All of it is under Python's licence. It is cut in two splits that share nothing, so that a profile calibrated on one
can be judged on the other. Which text a Python release ships varies; :func:`fingerprint` tells different text apart.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pydoc
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

from sparsity_rpc.errors import ConfigurationError

SPLITS = ("calibration", "held-out")
# Chapters of the language reference and modules, each with several times 8k tokens of text between them.
_CHAPTERS = {"calibration": ("specialnames", "formatstrings"), "held-out": ("compound", "debugger")}
_MANUALS = {
    "calibration": ("argparse", "asyncio.streams", "unittest.mock", "statistics"),
    "held-out": ("decimal", "logging", "subprocess", "typing"),
}
_SOURCES = {
    "calibration": ("configparser", "gettext", "imaplib", "mailbox", "optparse", "pstats", "shelve", "tarfile"),
    "held-out": ("cmd", "difflib", "ftplib", "locale", "netrc", "pickletools", "shlex", "zipfile"),
}


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ConfigurationError(f"split: must be one of {', '.join(SPLITS)}, not {split!r}")
    return split


@cache
def paragraphs(split: str) -> tuple[str, ...]:
    """Distinct paragraphs of the language reference; each belongs to one split, whichever chapters repeat it."""
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text) >= 80:
                found.setdefault(text)
    number = SPLITS.index(_known(split))
    return tuple(text for text in found if hashlib.sha256(text.encode()).digest()[0] % 2 == number)


@cache
def documents(split: str) -> tuple[str, ...]:
    """Long texts to read from their beginning: one of prose, and the manuals of modules, two in each."""
    manuals = [_manual(name) for name in _MANUALS[_known(split)]]
    prose = "\n\n".join(topics[name] for name in _CHAPTERS[split])
    return prose, "\n\n".join(manuals[:2]), "\n\n".join(manuals[2:])


@cache
def functions(split: str) -> tuple[str, ...]:
    """Source code of modules, cut at blank lines between top-level blocks."""
    found: list[str] = []
    for name in _SOURCES[_known(split)]:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        found += [block.strip("\n") for block in source.split("\n\n\n") if 120 <= len(block) <= 4000]
    return tuple(found)


def shuffled(texts: tuple[str, ...], rng: Random) -> list[str]:
    """The texts in an order of ``rng``'s."""
    order = list(texts)
    rng.shuffle(order)
    return order


def _manual(module: str) -> str:
    # Addresses of objects would make the text another one in each run.
    lines = pydoc.plain(pydoc.render_doc(module)).split("\n")
    return "\n".join(line for line in lines if " at 0x" not in line and "/lib/" not in line)


@cache
def fingerprint() -> str:
    """Short hash of all text of both splits."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for text in (*paragraphs(split), *documents(split), *functions(split)):
            digest.update(text.encode())
    return digest.hexdigest()[:12]
