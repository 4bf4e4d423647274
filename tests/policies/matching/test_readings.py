# ruff: noqa: RUF001 - what looks like another letter is what this is about.
"""No way of writing hides a literal, few disguises do; and nothing is read into other texts."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.matching.readings import forms, readings
from sparsity_policies.matching.rewriting import rewritten
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.matching.signs import Signs, signs_of
from support.asked.written import DISGUISES, DOCUMENTS, Way
from support.stores.snapshots import snapshot

SHIPPED = snapshot()
LITERALS = [
    (item.policy.detection.flag, literal)
    for item in SHIPPED.policies.values()
    for literal in item.policy.detection.literals
]
PROSE = (
    "The report of 2024-05-06 lists 42 items (see http://example.com/q2?id=7&lang=en), signed by a_b@example.com "
    "or nobody. Well-known co-authors, e.g. J. R. R. Tolkien, wrote 3.5% of it; the 1st and 2nd parts cost $100 each. "
)


def scanner_of(*literals: str, patterns: tuple[str, ...] = ()) -> Scanner:
    detection = {"literals": list(literals), "patterns": list(patterns), "flag": "f"}
    bands = [{"from_tokens": 0, "tier": "dense"}]
    return Scanner([parse_policy({"domain": "x", "risk": "low", "bands": bands, "detection": detection})])


def missed(ways: Mapping[str, Way]) -> list[tuple[str, str]]:
    return [
        (name, literal)
        for name, way in ways.items()
        for flag, literal in LITERALS
        if flag not in SHIPPED.scanner.scan(f"{PROSE}Before it, {way(literal)} and behind.\n{PROSE}").flags
    ]


def test_no_literal_is_missed_as_documents_write_it() -> None:
    assert len(LITERALS) >= 14
    assert missed(DOCUMENTS) == []


def test_few_literals_are_missed_in_disguise() -> None:
    assert len(missed(DISGUISES)) <= 0.2 * len(DISGUISES) * len(LITERALS)


def test_harmless_text_is_found_harmless_in_every_form() -> None:
    for name, way in {**DOCUMENTS, **DISGUISES}.items():
        assert not SHIPPED.scanner.scan(way(PROSE * 3)).flags, name


@pytest.mark.parametrize("way", ["no-break space", "hyphenated at a line's end", "full width", "entities throughout"])
def test_patterns_are_matched_in_the_normal_form(way: str) -> None:
    scanner = scanner_of(patterns=(r"\btop[- ]secret\b", r"\bid:? \d{5}"))
    assert scanner.scan(f"so {DOCUMENTS[way]('Top secret')} is").flags == {"f"}
    assert scanner.scan(f"so {DOCUMENTS[way]('TOP-SECRET')} is").flags == {"f"}
    assert scanner.scan(f"so {DOCUMENTS[way]('ID: 12345')} is").flags == {"f"}


def test_a_hyphen_at_a_lines_end_may_be_the_words_own() -> None:
    assert scanner_of(patterns=("self-harm",)).scan("self-\nharm").flags
    assert scanner_of(patterns=("selfharm",)).scan("self-\nharm").flags
    assert scanner_of("attorney-client privilege").scan("attorney-\nclient privi-\n  lege").flags
    assert not scanner_of("attorney-client privilege").scan("attorney client privilege").flags


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("Straße des Todes", "STRASSE DES TODES"),
        ("strasse", "Straße"),
        ("ΘΑΝΑΤΟΣ", "θάνατος".replace("ά", "α")),
        ("суицид", "СУИЦИД"),
        ("想自杀", "想自\u200b杀"),
        ("R&amp;D secrets", "R&D secrets"),
        ("R&D secrets", "R&amp;D secrets"),
        ("“quoted” words", '"quoted" words'),
        ("&nbsp;", "an &nbsp; in it"),
        ("---", "a --- b"),
        ("a--b", "a--b"),
        ("it's", "it\u00b4s"),
    ],
)
def test_literals_are_folded_as_texts_are(literal: str, text: str) -> None:
    assert scanner_of(literal).scan(f"see {text}.").flags == {"f"}


# Words of letters that every form keeps apart, and what is folded to several letters or away.
WORDS = st.lists(st.text("abcßéﬁ\u00e5кñ自\u00ad-'", min_size=3, max_size=8), min_size=1, max_size=4).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), st.sampled_from([str, str.upper, str.casefold]))
def test_any_literal_is_found_in_any_form(literal: str, form: str, case: type[str]) -> None:
    text = unicodedata.normalize(form, case(literal))
    if len(re.sub(r"[\W_]", "", literal)) >= 3:
        assert scanner_of(literal).scan(f"so ({text}) is").flags == {"f"}


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.text("abcdé-\u00a0 ", min_size=3, max_size=12)
)
def test_what_the_text_itself_holds_is_found_whatever_it_may_be_read_as(text: str, literal: str) -> None:
    if len(literal.replace("-", "").strip()) >= 3:
        assert scanner_of(literal).scan(f"{text} {literal} {text}").flags == {"f"}


def matched_plainly(literal: str, text: str) -> bool:
    """Whether a literal is found in a text or its compatibility form, whatever its case, without what is not seen."""

    def plainly(words: str) -> str:
        return unicodedata.normalize("NFKC", re.sub("[\u00ad\u200b-\u200f\u2060\ufeff]", "", words))

    wanted = re.compile(r"\s+".join(map(re.escape, plainly(literal).split())), re.IGNORECASE)
    return bool(wanted.search(text) or wanted.search(plainly(text)))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"abßéﬁKſ-'” 1", "\u00a0", "\u00ad", "\u0301", "\u200b", "\n", "&amp;", "-\n"]), max_size=40
    ),
    st.integers(0, 30),
    st.integers(3, 9),
)
def test_whatever_a_plain_search_finds_is_found(parts: list[str], start: int, length: int) -> None:
    """No form takes anything away: a literal that a text holds, or its compatibility form does, is found in it."""
    text = "".join(parts)
    literal = text[start : start + length]
    if len(unicodedata.normalize("NFKC", literal).replace("\u200b", "").replace("\u00ad", "").strip()) < 3:
        return
    assert matched_plainly(literal, text) <= bool(scanner_of(literal).scan(text).flags)


def test_a_text_without_signs_is_read_once() -> None:
    for text in (
        "",
        "a",
        "plain text: it's 5 o'clock, 100 km/h; self-made - so what?\n\n- a list\n- of two\n",
        "." * 1000,
    ):
        assert not signs_of(text.encode())
        assert readings(text.encode()) == (text.encode(),)
    assert readings("日本".encode()) == ("日本".encode(),)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"ab 1é\u00a0-\n@", "&amp;", "%41", "k1ll", "d2FudCB0byBkaWU=", "a b c d e"]), max_size=30
    )
)
def test_every_form_tells_where_its_characters_came_from(parts: list[str]) -> None:
    text = "".join(parts)
    for form in forms(text, signs_of(text.encode())):
        assert form.text == rewritten(text, form.steps)
        traced = form.traced(text)
        assert traced.text == form.text
        assert len(traced.origins) == len(form.text)
        assert all(0 <= origin < len(text) for origin in traced.origins)


@pytest.mark.parametrize(
    "text",
    ["a", "\u200b", "\u0301", "\x00", "?!.,;:" * 50, "\ud800\udc00 \udfff", "שלום \u202bעולם\u202c", "%", "&", "&#;",
     "&#xffffff;", "&#0;", "%ff%fe", "\\ud800", "-\n", "=" * 40, "A" * 17, "\ufffd"],
)  # fmt: skip
def test_odd_texts_are_read_and_found_harmless(text: str) -> None:
    assert not SHIPPED.scanner.scan(text).flags
    assert SHIPPED.scanner.scan(f"{text} want to die {text}").flags == {"safety"}


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "é",
        "ﬁ",
        "\u0301",
        "e\u0301",
        "a ",
        "&nbsp;",
        "%20",
        "-\n",
        "QUJD",
        "QUJDREVGQUJDREVG ",
        "k1",
        "\u00ad",
        "שלום ",
    ],
)
def test_much_of_anything_is_read_in_time_linear_in_it(part: str) -> None:
    """Four times as much takes no more than some eight times as long; and the end is read as the beginning is."""

    def seconds(size: int) -> float:
        data = (part * (size // len(part.encode()))).encode() + " want\u00a0to die".encode()
        started = time.process_time()
        assert SHIPPED.scanner.scan(data).flags == {"safety"}
        return time.process_time() - started

    least = min(seconds(1 << 18) for _ in range(2))
    assert seconds(1 << 20) <= 8 * least + 0.2


@pytest.mark.parametrize("letter", ["a", "é"])
def test_four_megabytes_of_one_letter_are_scanned_whole(letter: str) -> None:
    text = letter * (4_000_000 // len(letter.encode()))
    assert SHIPPED.scanner.scan(text).scanned_bytes >= 4_000_000
    assert SHIPPED.scanner.scan(f"{text} want\u00a0to die").flags == {"safety"}


@settings(max_examples=200, deadline=None)
@given(st.text("ab=/+-_A1 \n&%#;\\u|@.", max_size=80))
def test_what_only_looks_like_a_form_is_left_alone(text: str) -> None:
    assert not SHIPPED.scanner.scan(f"{text} {text.replace(' ', '')}").flags
    assert SHIPPED.scanner.scan(f"{text} want\u00a0to die {text}").flags == {"safety"}


def test_bytes_that_are_no_text_are_scanned_all_the_same() -> None:
    assert SHIPPED.scanner.scan(b"\xff\xfe want\xc2\xa0to die \xed\xa0\x80").flags == {"safety"}


def test_signs_are_told_apart() -> None:
    for text, sign in (
        ("é", Signs.FOREIGN), ("a&nbsp;b", Signs.ESCAPED), ("a%20b", Signs.ESCAPED), ("pri-\nvate", Signs.HYPHENATED),
        ("d2FudCBrbyBkaWUg", Signs.ENCODED), ("k1ll", Signs.DISGUISED), (" w a n t ", Signs.SPACED),
    ):  # fmt: skip
        assert sign in signs_of(text.encode())
