"""Risk that a text holds: features, windows, what they mean, and what a policy's exemplars add."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import DetectionMode, Policy, Risk, Sensitivity
from sparsity_policies.risk.base import base
from sparsity_policies.risk.features import ROWS, blocks, codes_of, key_of, rows_of, width
from sparsity_policies.risk.learning import MOST_HEADS, model_of
from sparsity_policies.risk.lexicon import Lexicon, lexicon
from sparsity_policies.risk.model import Head, RiskModel, length_norm
from sparsity_policies.risk.scripts import SCRIPTS, scripts_of
from sparsity_policies.risk.training import features_of, learn
from sparsity_policies.risk.weighing import acting, placed, weigh
from sparsity_policies.risk.windows import windows_of
from support.stores.snapshots import snapshot

SHIPPED = snapshot(acting(shipped_policies("small-context")))
POLICIES = {domain: item.policy for domain, item in SHIPPED.policies.items()}
SICK = (
    "The patient was admitted with chest pain and shortness of breath. Troponin was raised, the ECG showed ST"
    " elevation, and she was given aspirin 300 mg, ticagrelor and a heparin infusion before the angiogram."
)
PLAIN = "The bakery opens at seven. On Saturdays there is rye bread, and the queue goes round the corner. "
STRANGE = [
    "x",
    "!?.,;",
    " \n\t",
    "שלום וברכה",
    "日本語とEnglishとहिन्दी مرحبا",
    "half \ud800 pair",
    "\u200b\u00ad",
    "a" * 1_000_000,
]


def chance_model(domains: int) -> RiskModel:
    chance = np.random.default_rng(1)
    return RiskModel([Head(f"d{n}", chance.normal(size=width()).astype(np.float32), 0.0) for n in range(domains)])


@pytest.mark.parametrize("size", [1, 63, 64, 65, 384, 8191, 8192, 8193, 20_000])
def test_a_text_has_the_same_features_however_it_is_cut_into_blocks(size: int) -> None:
    text = ("naïve Ärzte untersuchen 日本の患者 at 3 o'clock " * (size // 20 + 1))[:size]
    codes = codes_of(text)
    found = list(blocks(codes))
    assert sum(block.length for block in found) == len(codes)
    for block in found:
        assert all(len(rows) == block.length for rows in block.dense)
        assert len(block.words) == len(block.places)
        assert not len(block.places) or int(block.places.max()) < block.length
    # Of a text that ends with a block the features are those of both halves and what spans the cut.
    whole = np.bincount(rows_of(codes), minlength=width())
    assert whole.sum() == sum(len(rows) for block in found for rows in (*block.dense, block.words))


def test_words_are_the_same_across_a_block() -> None:
    words = "alpha beta gamma delta epsilon "
    text = words * 600
    counts = np.bincount(np.concatenate([block.words for block in blocks(codes_of(text))]), minlength=width())
    # Five words and five pairs, each as often as the text repeats them; the same of parts that the lexicon has.
    assert sorted(counts[:ROWS][counts[:ROWS] > 0].tolist()) == [599, *[600] * 9]
    assert set((counts[ROWS:][counts[ROWS:] > 0] % 600).tolist()) == {0}


@pytest.mark.parametrize("domains", [1, 4, 5])
def test_packed_scores_are_those_of_the_weights(domains: int) -> None:
    model = chance_model(domains)
    text = "Seven short words, ein paar mehr, और कुछ शब्द। " * 2
    scores = model.scores(text)
    for head in model.heads:
        window = scores.peaks[head.domain]
        assert (window.start, window.end) == (0, len(text))
        part = features_of(text[window.start : window.end])
        margin = float(part.values @ head.weights[part.rows])
        told = float(np.log(window.probability / (1 - window.probability)))
        # Weights are rounded to a byte.
        assert told == pytest.approx(margin, abs=0.1)


def test_only_wanted_domains_are_told() -> None:
    assert set(chance_model(6).scores("some text", {"d1", "d5"}).peaks) == {"d1", "d5"}


def test_norms_grow_with_the_text() -> None:
    assert 0 < float(length_norm(0.0)) < float(length_norm(100.0)) < float(length_norm(384.0))


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_texts_have_an_answer(text: str) -> None:
    started = time.process_time()
    scores = base().model.scores(text)
    assert time.process_time() - started < 2.0
    assert all(0.0 <= window.probability <= 1.0 for window in scores.peaks.values())
    assert all(np.isfinite(mean) for mean in scores.means.values())


def test_an_empty_text_is_of_nothing() -> None:
    assert not base().model.scores("").peaks
    assert not base().model.scores("\u200b").peaks


def test_a_paragraph_in_the_middle_is_enough_and_its_place_is_told() -> None:
    text = PLAIN * 100 + SICK + PLAIN * 100
    window = base().model.scores(text).peaks["medical"]
    assert window.start < len(PLAIN) * 100 + len(SICK)
    assert window.end > len(PLAIN) * 100
    moved = weigh(POLICIES["rag"], base().model.scores(text), SHIPPED.risk.policies)
    assert "medical" in moved.raised
    assert moved.findings[0].outcome == "moved"
    assert not weigh(POLICIES["rag"], base().model.scores(PLAIN * 100), SHIPPED.risk.policies).raised


def changed(domain: str, **detection: object) -> dict[str, Policy]:
    policy = POLICIES[domain]
    fresh = replace(policy, detection=replace(policy.detection, **detection))
    return dict(SHIPPED.risk.policies) | {domain: fresh}


def test_modes_and_sensitivity() -> None:
    scores = base().model.scores(PLAIN * 10 + SICK)
    rag = POLICIES["rag"]
    observed = weigh(rag, scores, changed("medical", mode=DetectionMode.OBSERVE))
    assert "medical" not in observed.raised
    assert next(one for one in observed.findings if one.domain == "medical").outcome == "observed"
    off = weigh(rag, scores, changed("medical", mode=DetectionMode.OFF))
    assert all(one.domain != "medical" for one in off.findings)
    trusted = replace(rag, detection=replace(rag.detection, mode=DetectionMode.OFF))
    assert not weigh(trusted, scores, SHIPPED.risk.policies).findings
    thresholds = [
        next(
            one for one in weigh(rag, scores, changed("medical", sensitivity=level)).findings if one.domain == "medical"
        )
        for level in (Sensitivity.HIGH, Sensitivity.NORMAL, Sensitivity.LOW)
    ]
    assert thresholds[0].threshold < thresholds[1].threshold < thresholds[2].threshold


def test_nothing_is_moved_to_a_domain_of_no_more_risk() -> None:
    scores = base().model.scores(SICK)
    assert POLICIES["legal"].risk is Risk.HIGH
    assert not weigh(POLICIES["legal"], scores, SHIPPED.risk.policies).findings


def test_places_are_those_of_the_text_as_it_was_written() -> None:
    text = "\u00ad\u200b" * 50 + "ﬁne words " * 50
    finding = weigh(None, base().model.scores(text), SHIPPED.risk.policies).findings[0]
    (found,) = placed([finding._replace(start=0, end=len(codes_of(text)))], text)
    assert found.end == len(text) or len(codes_of(text[: found.end])) == len(codes_of(text))
    assert placed([finding], "plain ascii") == [finding]


def windows_in(text: str) -> set[str]:
    starts, ends, units = windows_of(codes_of(text))
    assert int(np.diff(np.append(units, len(text))).max()) <= 128
    return {text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)}


def test_windows_are_paragraphs_and_no_two_of_them() -> None:
    paragraphs = [letter * 150 + "\n\n" for letter in "abcdef"]
    assert windows_in("".join(paragraphs)) == set(paragraphs)


def test_wrapped_lines_are_a_paragraph_and_a_long_one_is_cut_at_lines() -> None:
    wrapped = "one line of a letter\nand another one\n  \n"
    assert wrapped in windows_in(wrapped + "b" * 800)
    lines = [letter * 150 + "\n" for letter in "abcdef"]
    assert windows_in("".join(lines)) == set(lines)


def test_sentences_of_a_long_line_are_windows_and_so_are_two() -> None:
    sentences = [f"{letter * 120}. " for letter in "abcdefgh"]
    found = windows_in("".join(sentences))
    assert all(any(part in window and len(window) < 200 for window in found) for part in ("b" * 120, "e" * 120))
    assert any("b" * 120 in window and "c" * 120 in window for window in found)


def test_a_short_line_goes_on_into_the_next() -> None:
    assert any(window.startswith("Yes.\n\naaaa") for window in windows_in("Yes.\n\n" + "a" * 700))


def test_words_and_parts_of_words_are_known() -> None:
    known = set((rows_of(codes_of("doctor"))[rows_of(codes_of("doctor")) >= ROWS]).tolist())
    assert known == {ROWS + int(lexicon().find(np.array([key_of("doctor", inner=False)], np.uint64))[0])}
    # Of a word that is in no lexicon the parts are.
    assert sum(row >= ROWS for row in rows_of(codes_of("unbedoctorlings"))) > 1
    assert sum(row >= ROWS for row in rows_of(codes_of("医生")).tolist()) >= 2


def test_a_lexicon_keeps_the_first_of_words_with_one_place() -> None:
    keys = np.array([5 << 44 | 1, 5 << 44 | 2, 6 << 44 | 1], np.uint64)
    words = Lexicon(keys)
    assert words.find(keys).tolist() == [0, -1, 2]
    assert words.find(np.array([7], np.uint64)).tolist() == [-1]
    assert len(words) == 3
    assert len(Lexicon(np.zeros(0, np.uint64))) == 0


@pytest.mark.parametrize(
    ("text", "script"),
    [("plain words", "latin"), ("врач и суд", "cyrillic"), ("医生 and a word", "latin"),
     ("طبيب", "arabic"), ("डॉक्टर", "devanagari"), ("医生と患者", "unspaced"), ("1, 2, 3", "latin")],
)  # fmt: skip
def test_a_window_is_of_the_script_of_its_letters(text: str, script: str) -> None:
    codes = codes_of(text)
    (number,) = scripts_of(codes, np.zeros(1, np.int64), np.array([len(codes)]))
    assert list(SCRIPTS)[number] == script


def test_what_is_learnt_of_a_word_is_learnt_of_those_that_mean_the_like() -> None:
    pairs = [("doctor", "médecin"), ("court", "tribunal")]
    numbers = {word: rows_of(codes_of(word)) for pair in pairs for word in pair}
    rows = {word: int(found[found >= ROWS][0]) - ROWS for word, found in numbers.items()}
    vectors = np.zeros((len(lexicon()), 2), np.float32)
    for dimension, pair in enumerate(pairs):
        vectors[[rows[word] for word in pair], dimension] = 1.0
    shown = [("medical", features_of("doctor")), ("", features_of("court"))] * 4
    found = learn(shown, ["medical"], frozenset({"medical"}), 8, vectors=vectors)
    told = {word: float(found.weights[ROWS + row, 0]) for word, row in rows.items()}
    assert told["médecin"] == told["doctor"] > 0 > told["court"] == told["tribunal"]
    alone = learn(shown, ["medical"], frozenset({"medical"}), 8)
    assert float(alone.weights[ROWS + rows["médecin"], 0]) == 0.0


@pytest.mark.parametrize("text", ["a" * 10_000, "word " * 5000, "\n" * 5000, "ab.\n" * 5000, "\u6f22" * 3000, "x"])
def test_every_letter_is_in_a_window(text: str) -> None:
    codes = codes_of(text)
    starts, ends, units = windows_of(codes)
    seen = np.zeros(len(codes) + 1, np.int64)
    np.add.at(seen, starts, 1)
    np.add.at(seen, ends, -1)
    assert np.cumsum(seen)[:-1].min() > 0
    assert (ends > starts).all()
    assert units[0] == 0
    assert (np.diff(np.append(units, len(codes))) > 0).all()
    assert int(np.diff(np.append(units, len(codes))).max()) <= 128


def test_a_thousand_domains_are_bounded_and_it_is_told_which_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[int] = []

    def learnt(exemplars: Mapping[str, Sequence[str]], risky: frozenset[str]) -> list[Head]:
        shown.append(len(exemplars))
        return [Head(domain, np.zeros(width(), np.float32), -2.0) for domain in exemplars]

    own = [
        replace(
            POLICIES["medical"],
            domain=f"domain-{number:04}",
            risk=Risk.HIGH if number == 999 else Risk.ELEVATED,
            detection=replace(POLICIES["medical"].detection, exemplars=(f"text number {number}",)),
        )
        for number in range(1000)
    ]
    with caplog.at_level(logging.WARNING, "sparsity.policies.risk"):
        model = model_of([*own, *POLICIES.values()], None, learnt)
    assert shown == [MOST_HEADS - len(base().model.heads)]
    # Those of high risk come first.
    assert "domain-0999" in model.policies
    assert "domain-0998" not in model.policies
    assert "exemplars of 9" in caplog.text


def test_four_megabytes_of_one_letter_and_of_every_script_are_read_in_bounded_time() -> None:
    for text in (
        "a" * 4_000_000,
        "\u533b" * 1_300_000,
        "mixed \u0441\u0443\u0434 \u0637\u0628\u064a\u0628 \u5668. " * 200_000,
    ):
        started = time.process_time()
        scores = base().model.scores(text)
        assert time.process_time() - started < 20.0
        assert all(0.0 <= window.probability <= 1.0 for window in scores.peaks.values())
