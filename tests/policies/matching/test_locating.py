"""Where a text has what policies look for: in characters of the text as it was written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.matching.locating import MOST_MATCHES, locate
from sparsity_policies.matching.rewriting import Substitution
from sparsity_policies.matching.scan import Scanner
from support.asked.written import DISGUISES, DOCUMENTS
from support.stores.snapshots import snapshot

SHIPPED = snapshot().scanner
# As a reader of PDF files gives it: a no-break space, a ligature, a word parted at a line's end, a page's end.
PDF = (
    "ACME CORP.\u00a0\u2013 LEGAL\n\n1. Con\ufb01dentiality. This memorandum is attorney\u2011client\u00a0privi-\n"
    "lege and shall not be dis\u00adclosed.\n\x0c2. Pay\u00adment \u2026"
)


def scanner_of(**detection: list[str]) -> Scanner:
    bands = [{"from_tokens": 0, "tier": "dense"}]
    document = {"domain": "x", "risk": "low", "bands": bands, "detection": {"flag": "f", **detection}}
    return Scanner([parse_policy(document)])


def test_a_literal_in_the_text_of_a_pdf_is_shown_where_it_is() -> None:
    (match,) = locate(PDF, SHIPPED)
    assert (match.owner.domain, match.owner.source) == ("legal", "attorney-client privilege")
    assert PDF[match.start : match.end] == "attorney\u2011client\u00a0privi-\nlege"
    assert match.form == "hyphenated"
    plain = PDF.replace("-\n", "")
    (match,) = locate(plain, SHIPPED)
    assert plain[match.start : match.end] == "attorney\u2011client\u00a0privilege"
    assert match.form == "normal"


@pytest.mark.parametrize("way", [*DOCUMENTS, *DISGUISES])
def test_every_form_of_a_literal_is_shown_whole(way: str) -> None:
    written = {**DOCUMENTS, **DISGUISES}[way]("protected health information")
    if way == "base64 in lines":
        written = written.removesuffix("\n")
    text = f"Caf\u00e9 \u2013 first, {written} and more."
    for match in locate(text, SHIPPED):
        assert match.owner.source == "protected health information"
        # A match in base64 is shown by the lines that have it.
        found = text[match.start : match.end]
        assert found in written if way == "base64 in lines" else found == written


def test_a_pattern_is_shown_from_where_its_shortest_match_begins() -> None:
    scanner = scanner_of(patterns=[r"\bid:? \d{5}\b", "a.*z"])
    text = "\u00e9 a id: id:\u00a012345, z"
    found = {match.owner.source: text[match.start : match.end] for match in locate(text, scanner)}
    assert found == {r"\bid:? \d{5}\b": "id:\u00a012345", "a.*z": "a id: id:\u00a012345, z"}


def test_places_come_in_the_order_of_the_text_and_as_written_first() -> None:
    scanner = scanner_of(literals=["first words", "second words"])
    text = "second\u00a0words, first words, second words"
    assert [(match.owner.source, match.form, match.start) for match in locate(text, scanner)] == [
        ("first words", "written", 14),
        ("second words", "written", 27),
    ]


def test_what_another_text_hides_is_shown_in_the_first() -> None:
    text = "first <x>wo<x>rds"
    step = Substitution("<x>", lambda _: "")
    (match,) = locate(text, scanner_of(literals=["first words"]), [step])
    assert text[match.start : match.end] == text


def test_no_more_places_are_told_than_are_read() -> None:
    words = [f"word{number} {number}" for number in range(100)]
    assert len(locate(" ".join(words), scanner_of(literals=words))) == MOST_MATCHES


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
def test_a_literal_as_it_is_written_is_shown_exactly(before: str, behind: str) -> None:
    text = f"{before} want to die {behind}"
    (match,) = (match for match in locate(text, SHIPPED) if match.owner.source == "want to die")
    assert re.fullmatch("(?i)want to die", text[match.start : match.end])
