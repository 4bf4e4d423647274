"""The generators: the same everywhere, of the length asked for, answerable, and without leaks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from random import Random

import pytest
from sparsity_quality.tasks import FAMILIES, corpus, generate
from sparsity_quality.tasks.case import RESERVE, Case, Question, cut, haystack
from sparsity_quality.tasks.metrics import METRICS
from sparsity_rpc.errors import ConfigurationError

WORDS: dict[str, int] = {}
TEXTS: list[str] = []


def encode(text: str) -> list[int]:
    """A token a character run: exact to decode, and quick."""
    found = []
    for piece in text.replace("\n", "\n ").split(" "):
        if piece not in WORDS:
            WORDS[piece] = len(WORDS)
            TEXTS.append(piece)
        found.append(WORDS[piece])
    return found


def text_of(case: Case) -> str:
    return " ".join(TEXTS[token] for token in case.tokens).replace("\n ", "\n")


def case_of(family: str, split: str = "held-out", tokens: int = 2048, seed: int = 1, sample: int = 0) -> Case:
    return generate(family, split, seed, sample, tokens, encode)


@pytest.mark.parametrize("tokens", [1024, 2000, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_is_exactly_as_long_as_asked(family: str, tokens: int) -> None:
    assert len(case_of(family, tokens=tokens).tokens) == tokens - RESERVE


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_and_answers_fit_into_the_reserve(family: str) -> None:
    for sample in range(5):
        for question in case_of(family, sample=sample).questions:
            assert len(encode(question.prompt)) + question.new_tokens <= RESERVE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_arguments_give_the_same_case_and_others_another(family: str) -> None:
    assert case_of(family) == case_of(family)
    others = [case_of(family, seed=2), case_of(family, sample=1), case_of(family, tokens=2100)]
    assert all(other.questions != case_of(family).questions for other in others)


def test_another_process_makes_the_same_case() -> None:
    code = (
        "from sparsity_quality.tasks import generate; import hashlib\n"
        "case = generate('needles', 'held-out', 1, 0, 1024, lambda text: list(text.encode()))\n"
        "print(hashlib.sha256(repr(case).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("family", ["needles", "facts", "code", "labels", "frequencies"])
def test_every_answer_stands_in_the_context_and_scores_in_full(family: str) -> None:
    for sample in range(3):
        case = case_of(family, sample=sample)
        context = text_of(case)
        for question in case.questions:
            for answer in question.answers:
                assert answer in context, (question, answer)
            reply = " ".join(question.answers) if question.metric == "recall" else question.answers[0]
            assert METRICS[question.metric](cut(f" {reply}", question.stop), question.answers) == 1.0


@pytest.mark.parametrize("family", ["needles", "facts", "code"])
def test_a_question_does_not_give_its_answer_away(family: str) -> None:
    for question in case_of(family).questions:
        assert not any(answer in question.prompt for answer in question.answers)


def test_numbers_are_asked_for_once_each() -> None:
    for sample in range(5):
        context = text_of(case_of("needles", sample=sample))
        for question in case_of("needles", sample=sample).questions:
            if question.task == "needle, one of many keys":
                assert context.count(question.prompt.strip()) == 1


def test_no_request_that_is_asked_for_is_among_the_examples() -> None:
    case = case_of("labels", tokens=4096)
    context = text_of(case)
    for question in case.questions:
        assert question.prompt.strip().splitlines()[0] not in context


def test_the_frequent_word_is_the_most_frequent() -> None:
    case = case_of("frequencies")
    words = text_of(case).split()
    (answer,) = case.questions[0].answers
    others = {word for word in words if word != answer}
    assert words.count(answer) > 3 * max(words.count(other) for other in others)


def test_needles_lie_anywhere_but_at_the_very_end() -> None:
    places = []
    for seed in range(60):
        tokens = haystack((f"filler {number}" for number in range(999)), ["NEEDLE"], 400, encode, Random(seed))
        places.append(tokens.index(encode("NEEDLE\n")[0]) / len(tokens))
    assert min(places) < 0.15
    assert 0.8 < max(places) < 1.0
    assert 0.35 < sum(places) / len(places) < 0.65


def test_the_splits_share_no_text() -> None:
    for kind in (corpus.paragraphs, corpus.documents, corpus.functions):
        splits = [set(kind(split)) for split in corpus.SPLITS]
        assert all(splits)
        assert not splits[0] & splits[1]


def test_there_is_text_for_eight_thousand_tokens_in_every_document() -> None:
    for split in corpus.SPLITS:
        assert min(map(len, corpus.documents(split))) > 8192 * 4
        assert sum(map(len, corpus.paragraphs(split))) > 8192 * 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corpus.paragraphs("test"), "split: must be one of calibration, held-out"),
        (lambda: case_of("needles", tokens=200), "lengths: 72 tokens are too few for this task, which needs"),
        (lambda: case_of("needles", tokens=10**6), "lengths: 999872 tokens are more than the text at hand can fill"),
        (lambda: case_of("labels", tokens=10**6), "lengths: 1000000 tokens are more than the"),
        (lambda: Question("t", "p", (), "exact", 3), "answers: must hold at least one text"),
        (lambda: Question("t", "p", ("a",), "exact", 0), "new_tokens: must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()
