"""The texts that risk is learned from, calibrated by and measured on: whole, varied, and of one split only."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from scipy.sparse import csr_array
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.matching.scan import Scanner

SPLITS = ("train", "calibration", "heldout")
LANGUAGES = ("en", "de", "fr", "es", "pt", "zh", "ja", "ar", "hi", "ru")
RISKY = ("medical", "legal", "safety", "compliance")
DOMAINS = (*RISKY, "harmless")
RISKY_KINDS = {"question", "record", "contract", "transcript", "form", "news", "chat", "manual"}
HARMLESS_KINDS = RISKY_KINDS | {"code", "fiction", "idiom"}
SHARED_LIMIT = 0.15  # of the runs of five words (zh, ja: characters) that two texts have together
LIKENESS_LIMIT = 0.45  # of their words (zh, ja: pairs of characters)
ROWS = 512  # texts that are compared with all others at once
EDGE = 4  # words by which a text begins or ends
SAME_EDGE = 3  # texts that may begin or end alike


class Row(NamedTuple):
    id: str
    domain: str
    kind: str
    text: str


def rows_of(split: str, language: str) -> list[Row]:
    path = resources.files("sparsity_policies").joinpath("risk", "data", split, f"{language}.jsonl")
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def units(text: str, language: str) -> list[str]:
    """Words in lower case without punctuation; of a script without spaces, characters."""
    spaced = "".join(" " if unicodedata.category(char)[0] in "PS" else char for char in text.casefold())
    return [char for char in spaced if char.isalnum()] if language in ("zh", "ja") else spaced.split()


def runs(text: str, language: str, length: int) -> frozenset[tuple[str, ...]]:
    found = units(text, language)
    return frozenset(tuple(found[start : start + length]) for start in range(max(1, len(found) - length + 1)))


def shared(first: Iterable[str], second: Iterable[str], language: str) -> list[tuple[str, str]]:
    """Pairs of texts, one of each side, that are the same paragraph or nearly."""
    holders = defaultdict(set)
    there = [(text, runs(text, language, 5)) for text in second]
    for number, (_, held) in enumerate(there):
        for run in held:
            holders[run].add(number)
    pairs = []
    for text in first:
        mine = runs(text, language, 5)
        for number in set().union(*(holders[run] for run in mine if run in holders)):
            other, theirs = there[number]
            if len(mine & theirs) > SHARED_LIMIT * len(mine | theirs):
                pairs.append((text, other))
    return pairs


def alike(held: Sequence[frozenset[tuple[str, ...]]]) -> Iterator[tuple[int, int]]:
    """Pairs of texts that share more than ``LIKENESS_LIMIT`` of their words, by products of sparse matrices."""
    known = {word: number for number, word in enumerate(sorted(set().union(*held)))}
    rows = np.repeat(np.arange(len(held)), [len(words) for words in held])
    columns = [known[word] for words in held for word in words]
    has = csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(held), len(known)))
    sizes = has.sum(axis=1)
    for first in range(0, len(held), ROWS):
        part = slice(first, first + ROWS)
        both = (has[part] @ has.T).toarray()
        like = both > LIKENESS_LIMIT * (sizes[part, None] + sizes[None] - both)
        yield from ((first + one, other) for one, other in np.argwhere(like).tolist() if first + one < other)


def filled(texts: list[str], language: str) -> Iterator[str]:
    """What looks like one template with other words put in: texts that are alike, series that begin or end alike."""
    held = [runs(text, language, 2 if language in ("zh", "ja") else 1) for text in texts]
    for one, other in alike(held):
        yield f"{texts[one]!r} is like {texts[other]!r}"
    width = 2 * EDGE if language in ("zh", "ja") else EDGE
    split = [found for text in texts if len(found := units(text, language)) > width]
    for name, edges in (("begin", [found[:width] for found in split]), ("end", [found[-width:] for found in split])):
        for edge, count in Counter(map(tuple, edges)).items():
            if count > SAME_EDGE:
                yield f"{count} texts {name} with {' '.join(edge)!r}"


ALL = {(split, language): rows_of(split, language) for split in SPLITS for language in LANGUAGES}


def test_ids_are_unique_and_texts_stand_once() -> None:
    rows = [row for found in ALL.values() for row in found]
    assert [name for name, count in Counter(row.id for row in rows).items() if count > 1] == []
    assert [text for text, count in Counter(row.text for row in rows).items() if count > 1] == []


@pytest.mark.parametrize(("split", "language"), ALL)
def test_every_domain_is_covered_in_every_language(split: str, language: str) -> None:
    rows = ALL[split, language]
    assert {row.domain for row in rows} == set(DOMAINS)
    assert all(row.id.startswith(f"{language}-{split}-{row.domain}-") for row in rows)
    assert all(row.text == row.text.strip() and len(row.text) >= 8 for row in rows)
    counts = Counter(row.domain for row in rows)
    assert min(counts[domain] for domain in RISKY) >= (25 if split == "train" else 10)
    assert counts["harmless"] >= 2 * max(counts[domain] for domain in RISKY)


@pytest.mark.parametrize(("split", "language"), ALL)
def test_kinds_are_mixed(split: str, language: str) -> None:
    kinds = {domain: {row.kind for row in ALL[split, language] if row.domain == domain} for domain in DOMAINS}
    assert set().union(*kinds.values()) <= HARMLESS_KINDS
    for domain in RISKY:
        assert len(kinds[domain] & RISKY_KINDS) >= (8 if split == "train" else 6), (domain, kinds[domain])
    assert kinds["harmless"] >= HARMLESS_KINDS - {"contract"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_paragraph_is_shared_between_splits(language: str) -> None:
    for first, second in combinations(SPLITS, 2):
        pairs = shared(*([row.text for row in ALL[split, language]] for split in (first, second)), language)
        assert pairs == [], f"{first} and {second}"


def test_no_shipped_exemplar_is_measured_on() -> None:
    exemplars = [text for policy in shipped_policies("standard") for text in policy.detection.exemplars]
    assert exemplars
    for split in ("calibration", "heldout"):
        assert shared(exemplars, [row.text for row in ALL[split, "en"]], "en") == []


def test_literals_and_patterns_leave_harmless_texts_alone() -> None:
    scanner = Scanner(shipped_policies("standard"))
    texts = [row.text for found in ALL.values() for row in found if row.domain == "harmless"]
    assert [text for text in texts if scanner.scan(text).flags] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_series_is_filled_from_a_template(language: str) -> None:
    texts = [row.text for split in SPLITS for row in ALL[split, language]]
    assert list(filled(texts, language)) == []


@pytest.mark.parametrize(
    ("series", "language"),
    [
        ([f"What dose of {drug} may a child of ten take?" for drug in ("ibuprofen", "codeine")], "en"),
        (
            [f"My brother has a pain in his {part} since he came home" for part in ("leg", "left arm", "back", "head")],
            "en",
        ),
        ([f"我{who}最近胃疼医生说要吃药可以自己停吗" for who in ("爸爸", "妈妈")], "zh"),
    ],
)
def test_a_filled_series_is_seen(series: list[str], language: str) -> None:
    assert list(filled(series, language))


def test_a_paragraph_that_was_hardly_changed_is_seen() -> None:
    text = ALL["train", "en"][0].text
    assert shared([text.replace("morning", "evening").upper()], [row.text for row in ALL["train", "en"]], "en")
