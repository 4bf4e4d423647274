from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hyperscan
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.matching.expressions import Expressions, compile_expressions
from sparsity_policies.matching.folding import folded
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.model import Policy
from support.stores.snapshots import snapshot

SCANNER = snapshot().scanner


def looking(flag: str = "n", **detection: list[str]) -> Policy:
    bands = [{"from_tokens": 0, "tier": "dense"}]
    return parse_policy({"domain": "x", "risk": "low", "bands": bands, "detection": {"flag": flag, **detection}})


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("I WANT to\n die", "safety"),
        ("thinking of self-harm", "safety"),
        ("MRN: 1234567", "medical"),
        ("Attorney-Client Privilege applies", "legal"),
    ],
)
def test_risk_phrases_raise_their_flag(text: str, flag: str) -> None:
    assert SCANNER.scan(text).flags == {flag}


def test_harmless_text_raises_none() -> None:
    result = SCANNER.scan("What is the capital of France? ünïcödé 日本")
    assert result.flags == frozenset()
    assert result.scanned_bytes == len("What is the capital of France? ünïcödé 日本".encode())


@settings(max_examples=60)
@given(before=st.integers(0, 400_000), after=st.integers(0, 400_000))
def test_a_phrase_is_found_at_any_offset(before: int, after: int) -> None:
    result = SCANNER.scan("x " * (before // 2) + "want to die" + " y" * (after // 2))
    assert result.flags == {"safety"}


def test_literals_are_literal() -> None:
    scanner = Scanner([looking("f", literals=["a.c (1+1) [x]"])])
    assert scanner.scan("see A.C (1+1)  [X]").flags == {"f"}
    assert not scanner.scan("abc (11) x").flags


@pytest.mark.parametrize(
    "literal", ["word\u2013processor\u00a0text", "word-processor text", "WORD\uff0dprocessor text"]
)
def test_a_literal_is_looked_for_as_it_is_read(literal: str) -> None:
    scanner = Scanner([looking("f", literals=[literal])])
    assert scanner.scan("a word-processor text").flags == {"f"}
    assert not scanner.scan("a word processor text").flags


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no-break\u00a0space\u202fand\u2028line", "no-break space and line"),
        ("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-" * 8),
        ("soft\u00adly, zero\u200bwidth\u200d\u2060, \ufeffmark", "softly, zerowidth, mark"),
        ("\uff46\uff55\uff4c\uff4c \ufb01t \U0001d41b\U0001d428\U0001d425\U0001d41d", "full fit bold"),
        ("don\u2019t", "don't"),
        ("e\u0301tude \u65e5\u672c", "\u00e9tude \u65e5\u672c"),
        ("\u202egnirts\u202c", "gnirts"),
        ("plain <text> - it's", "plain <text> - it's"),
    ],
)
def test_text_is_folded_to_what_is_read(written: str, read: str) -> None:
    assert folded(written) == read
    assert folded(read) == read


def test_nothing_to_look_for() -> None:
    assert Scanner([]).scan("anything") == (frozenset(), frozenset(), 8)


def test_an_edit_compiles_what_is_new_however_much_a_policy_looks_for() -> None:
    compiled: list[str] = []

    def watched(expressions: Sequence[str]) -> Any:
        compiled.extend(expressions)
        return compile_expressions(expressions)

    many = [f"needle {number:04}" for number in range(1000)]
    scanner = Scanner([looking(literals=many)])
    edited = Scanner([looking(literals=[*many[1:], "a new one"])], scanner, watched)
    assert compiled == ["a\\s+new\\s+one", "a\x01new\x01one", "anewone"]
    assert edited.scan("A  new one").flags == edited.scan("needle 0999").flags == {"n"}
    assert not edited.scan("needle 0000").flags
    # Of another flag all is new, and there is too much of it for a database beside the other.
    del compiled[:]
    moved = Scanner([looking("m", literals=many)], edited, watched)
    assert (len(compiled) > 1000, moved.scan("needle 0000").flags) == (True, {"m"})
    # A pattern is no literal of the same words.
    same = Scanner([looking(literals=many[:-1], patterns=["needle 0999"])], scanner)
    assert (same.scan("needle 0999").flags, same.scan("needle\n0999").flags) == ({"n"}, frozenset())
    assert Scanner([looking(literals=many)], same).scan("needle\n0999").flags == {"n"}


@pytest.mark.parametrize("source", ["kiss", "kis+"])
@pytest.mark.parametrize("text", ["ki\u017fs", "\u212aISS", "\u212ai\u017f\u017f", "Kiss", "k&#105;&#x17f;s"])
def test_the_other_cases_of_ascii_letters_hide_nothing(source: str, text: str) -> None:
    found = {"literals": [source]} if source.isalpha() else {"patterns": [source]}
    assert Scanner([looking(**found)]).scan(f"a {text} b").flags == {"n"}


def test_what_is_of_ascii_alone_takes_half_of_a_database() -> None:
    flags = hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SINGLEMATCH | hyperscan.HS_FLAG_UTF8
    words = [rf"the\s+sick\s+task\-?{number}" for number in range(100)]
    assert compile_expressions(words).size() < 0.7 * compile_expressions(words, flags).size()
    # What tells characters from bytes is of UTF-8 still.
    for expression, text in (
        ("^a.b$", "a\u00e9b"),
        ("a[^x]b", "a\u00e9b"),
        ("\u00e9", "\u00c9"),
        (r"a\Wb", "a\u00e9b"),
    ):
        assert Expressions(compile_expressions([expression])).matches(text.encode()), expression


def test_sixteen_threads_scan_large_prompts_at_once() -> None:
    """Each finds what is there, of the database that all share and of one beside it."""
    more = looking(literals=["needle"])
    base = [item.policy for item in snapshot().policies.values()]
    scanner = Scanner([*base, more], SCANNER)
    text = "want to die " + "lorem ipsum dolor sit amet, " * 20_000 + "needle"
    ready, before = threading.Barrier(16), sys.getswitchinterval()

    def scan(_: int) -> set[frozenset[str]]:
        ready.wait()
        return {scanner.scan(text).flags for _ in range(20)}

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as pool:
            found = set.union(*pool.map(scan, range(16)))
    finally:
        sys.setswitchinterval(before)
    assert found == {frozenset({"safety", "n"})}


def test_a_scan_without_memory_to_write_on_is_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is a doubt: anything else would refuse the request."""

    def exhausted(database: Any) -> Any:
        raise hyperscan.error("error code -2")

    fresh = Scanner([item.policy for item in snapshot().policies.values()])
    monkeypatch.setattr(hyperscan, "Scratch", exhausted)
    with pytest.raises(ValueError, match="scan failed: error code -2"):
        fresh.scan("a text")
