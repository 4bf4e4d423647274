# ruff: noqa: RUF001 - what looks like another letter is what this is about.
"""The normal form: what it makes of characters, and that it tells where each came from."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_policies.matching import rewriting
from sparsity_policies.matching.disguises import SEPARATOR, bare
from sparsity_policies.matching.folding import folded, folding
from sparsity_policies.matching.rewriting import Traced, rewritten

# What is folded at all, and marks, more often than among all characters.
LETTERS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("ßςſKİŉﬁ\u00ad\u200b\u00a0\u2011\n\r -aeko\u0301\u0327\u0331\u0323\u093c\u1161\u11a8\u3099"),
        st.characters(min_codepoint=0x300, max_codepoint=0x36F),
        st.characters(min_codepoint=0x1100, max_codepoint=0x11FF),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(LETTERS)
def test_a_folded_text_is_normal_and_stays_as_it_is(text: str) -> None:
    made = folded(text)
    assert unicodedata.is_normalized("NFKC", made) or text.isascii()
    assert folded(made) == made


@settings(max_examples=100, deadline=None)
@given(LETTERS)
def test_whatever_is_canonically_the_same_is_folded_alike(text: str) -> None:
    assert folded(unicodedata.normalize("NFC", f"é{text}")) == folded(unicodedata.normalize("NFD", f"é{text}"))


@settings(max_examples=100, deadline=None)
@given(LETTERS)
def test_every_character_tells_where_it_came_from(text: str) -> None:
    traced = Traced.of(text)
    for step in folding():
        traced = traced.through(step)
    assert traced.text == rewritten(text, folding())
    assert len(traced.origins) == len(traced.text)
    for character, origin in zip(traced.text, traced.origins, strict=True):
        if character.isascii() and character.isalnum() and text[origin].isascii():
            assert character.lower() in folded(f"é{text[origin]}").lower()
    if traced.text:
        assert 0 <= traced.origins.min() <= traced.origins.max() < len(text)


def test_long_texts_are_folded_as_short_ones() -> None:
    """In parts, whose seams no letter loses its marks at."""
    for part in ("e\u0301", "\u1112\u1161\u11ab", "ﬁß\u00ad", "a\u0323\u0302 ", "\u0301" * 7):
        assert folded(part * 40_000) == unicodedata.normalize("NFC", folded(part) * 40_000)


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("kіll mуѕеlf", "kiii myseif"),
        ("K1LL my$3lf", "kiii myseif"),
        ("k i l l  m.y.s-e_l*f", "kiiimyseif"),
        ("w a n t   t o   d i e", "want to die"),
        ("🅺🅸🅻🅻 🇲🇾ᴍʏꜱᴇʟꜰ", "kiii mymyseif"),
        ("k̶i̶l̶l̶", "kiii"),
        ("ρrіvіⅼеgе ϲоոfіԁеոtіаl", "priviiege confidentiai"),
        ("oﬃce\u200bx", "officex"),
        ("自杀 患者", "自杀 患者"),
        ("I am a b", "i am ab"),
    ],
)
def test_what_a_disguise_looks_like(written: str, seen: str) -> None:
    assert bare(written).replace(SEPARATOR, " ") == seen


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", " ", "bc", "word", "."]), max_size=30), st.integers(1, 400))
def test_spaced_letters_are_joined_alike_wherever_a_long_text_is_cut(parts: list[str], times: int) -> None:
    text = "".join(parts) * times
    whole = bare(text)
    chunk, rewriting._CHUNK = rewriting._CHUNK, 8
    try:
        assert bare(text) == whole
    finally:
        rewriting._CHUNK = chunk
