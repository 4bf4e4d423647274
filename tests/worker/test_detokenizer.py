from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_worker.detokenizer import IncrementalDetokenizer
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


def test_the_earliest_of_several_stops_wins() -> None:
    assert "".join(stream("a B C", ("C", "B"), 100)[0]) == "a "
