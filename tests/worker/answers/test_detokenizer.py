from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_serving.tokens.detokenizer import IncrementalDetokenizer
from support.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


def stream(text: str, stops: tuple[str, ...] = (), step: int = 1) -> tuple[list[str], bool]:
    detokenizer = IncrementalDetokenizer(TOKENIZER, stops)
    tokens, pieces = ids(text), []
    for start in range(0, len(tokens), step):
        piece = detokenizer.push(tokens[start : start + step])
        pieces.append(piece.text)
        if piece.stopped:
            return pieces, True
    last = detokenizer.finish()
    return [*pieces, last.text], last.stopped


@settings(max_examples=200)
@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=40), step=st.integers(1, 5))
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str, step: int) -> None:
    pieces, stopped = stream(text, step=step)
    assert "".join(pieces) == text
    assert not stopped
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_character_appears_with_its_last_byte() -> None:
    pieces, _ = stream("a🐸b")
    assert pieces == ["a", "", "", "", "🐸", "b", ""]


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert detokenizer.push(ids("ab🐸")[:4]).text == "ab"
    assert "\ufffd" in detokenizer.finish().text


def test_special_tokens_are_not_text() -> None:
    assert "".join(stream("a<|end|>b")[0]) == "ab"


@pytest.mark.parametrize("step", [1, 2, 7])
def test_a_stop_text_ends_the_stream_before_it(step: int) -> None:
    pieces, stopped = stream("one STOP two", ("STOP",), step)
    assert stopped
    assert "".join(pieces) == "one "


def test_what_only_begins_a_stop_text_is_released() -> None:
    pieces, stopped = stream("one STO", ("STOP",))
    assert not stopped
    assert "".join(pieces) == "one STO"
    assert pieces[-1] == "STO"


LETTERS = st.text("ab\u00e9\U0001f438\u4e2d", max_size=30)


@settings(max_examples=400, deadline=None)
@given(text=LETTERS, stops=st.lists(LETTERS.filter(bool), min_size=1, max_size=4), step=st.integers(1, 9))
def test_no_letter_of_a_stop_text_leaks_whatever_the_steps(text: str, stops: list[str], step: int) -> None:
    ended = next((end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)), None)
    if ended is None:
        expected, reached = text, False
    else:
        longest = max((stop for stop in stops if text[:ended].endswith(stop)), key=len)
        expected, reached = text[: ended - len(longest)], True
    pieces, stopped = stream(text, tuple(stops), step)
    assert ("".join(pieces), stopped) == (expected, reached)


def test_a_stop_text_within_a_character_that_never_ends_is_none() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, ("\U0001f438",))
    assert detokenizer.push(ids("a\U0001f438")[:-1]).text == "a"
    assert not detokenizer.finish().stopped


def test_control_tokens_are_text_where_they_may_be_marks() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, shows_control=True)
    assert detokenizer.push(ids("a<|end|>b")).text + detokenizer.finish().text == "a<|end|>b"


def test_the_earliest_of_several_stops_wins() -> None:
    assert "".join(stream("a B C", ("C", "B"), 100)[0]) == "a "
