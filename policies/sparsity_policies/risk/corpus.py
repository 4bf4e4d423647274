"""Labelled texts: those that come with the package, and files of the same form that users write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from sparsity_rpc.errors import InvalidRequestError, Violation

HARMLESS: Final = "harmless"
RISKY: Final = ("medical", "legal", "safety", "compliance")
# Harmless texts teach the shipped domains of low risk, too: code and support are told by their kind, and prose is a
# document to read. A kind that is not here belongs to none of them.
KINDS: Final = {
    "code": "code",
    "chat": "support-chat",
    "question": "support-chat",
    **dict.fromkeys(
        ("news", "fiction", "manual", "record", "contract", "transcript", "form", "idiom"), "summarization"
    ),
}
_MOST_MISTAKES: Final = 20


class Labelled(NamedTuple):
    """A text and what it is.

    Attributes:
        id: that no other text has.
        domain: that it is of, or `harmless`.
        kind: of text, such as `question`; empty where nobody says.
        text: all of it.
        language: its ISO 639-1 code; empty where nobody says.
    """

    id: str
    domain: str
    kind: str
    text: str
    language: str = ""


def shipped(split: str) -> list[Labelled]:
    """The texts of a split, `train`, `calibration` or `heldout`, by language."""
    found: list[Labelled] = []
    for path in _files(split):
        found += read_lines(path.read_text(encoding="utf-8"), f"{split}/{path.name}", path.name.partition(".")[0])
    return found


class Terms(NamedTuple):
    """Words and phrases of a domain's trade, or of harmless matters, in one language."""

    language: str
    domain: str
    terms: tuple[str, ...]


def shipped_terms() -> list[Terms]:
    """The lists that come with the package: texts are few, and most words of a trade are in none of them."""
    found = []
    for path in _files("terms"):
        # A heading names the domain; below it are its terms, with semicolons between them.
        for part in path.read_text(encoding="utf-8").split("# ")[1:]:
            domain, _, body = part.partition("\n")
            terms = (" ".join(term.split()) for term in body.split(";"))
            found.append(Terms(path.name.partition(".")[0], domain.strip(), tuple(term for term in terms if term)))
    return found


def shipped_digest() -> str:
    """Changes with what the shipped model learns and is calibrated by."""
    digest = hashlib.sha256()
    for split in ("train", "calibration"):
        for path in _files(split):
            digest.update(f"{split}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(split: str) -> list[Traversable]:
    folder = resources.files("sparsity_policies.risk") / "data" / split
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.endswith((".jsonl", ".txt")))
    return sorted(found, key=lambda path: path.name)


def read_lines(content: str, source: str, language: str = "") -> list[Labelled]:
    """Reads JSON lines with `id`, `domain`, `text` and where known `kind` and `language`.

    Args:
        content: of the file.
        source: its name, for what is said of mistakes.
        language: of lines that name none.

    Raises:
        InvalidRequestError: with a violation for each of the first mistakes, named by line.
    """
    found: list[Labelled] = []
    mistakes: list[Violation] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            labelled = _read(line, language, number)
            if (first := seen.setdefault(labelled.id, number)) != number:
                raise ValueError(f"id {labelled.id!r} is that of line {first}, too")
            found.append(labelled)
        except ValueError as error:
            mistakes.append(Violation(f"{source}:{number}", str(error)))
            if len(mistakes) == _MOST_MISTAKES:
                break
    if mistakes:
        raise InvalidRequestError(*mistakes)
    return found


def _read(line: str, language: str, number: int) -> Labelled:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("must be an object with domain and text")
    for key in ("domain", "text"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise ValueError(f"{key} must be text that is not empty")
    told = {key: value.get(key, "") for key in ("kind", "language")}
    for key, text in told.items():
        if not isinstance(text, str):
            raise ValueError(f"{key} must be text")
    return Labelled(
        str(value.get("id", number)), value["domain"], told["kind"], value["text"], told["language"] or language
    )


def labels(texts: Sequence[Labelled]) -> Iterator[tuple[str, str]]:
    """The domain that each text teaches, empty for none, and the text."""
    for labelled in texts:
        yield (KINDS.get(labelled.kind, "") if labelled.domain == HARMLESS else labelled.domain), labelled.text
