"""The benchmark of detection: what it misses, what it moves for nothing, what it costs; on texts that nobody learnt."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from sparsity_policies.decisions.risk_report import Ask, judge
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.model import Risk
from sparsity_policies.risk import corpus
from sparsity_policies.risk.corpus import HARMLESS
from sparsity_policies.risk.weighing import wanted
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.benchmark import Row

from sparsity_bench.risk.baselines import SentenceModel, found_by, keywords, shipped_snapshot
from sparsity_bench.risk.forms import DISGUISES, DOCUMENTS
from sparsity_bench.risk.prompts import DISTINCT, LongPrompt, harmless, risky
from sparsity_bench.risk.second import Second

_HARMLESS_EACH: Final = 20
_CARRIER: Final = "On page nine somebody has written: {}. The rest of the page is about gardens."
_MEMORY: Final = """
import psutil, sys
from sparsity_policies.matching.scan import Scanner
process = psutil.Process()
before = process.memory_info().rss
from sparsity_policies.risk.base import base
base().model.scores("four million letters " * 200_000)
print((process.memory_info().rss - before) / 2**20)
"""
Say = Callable[[str], None]
_LITERALS, _KEYWORDS = "literals and patterns alone", "terms of each trade, as literals"
_SENTENCES: Final = "literals, patterns and the sentence model"
_LINEAR, _WITH = "the linear model without one", "with a second opinion"


def measure(say: Say) -> list[Row]:
    """Every row; texts are the held-out split.

    Raises:
        ConfigurationError: when there is no held-out text.
    """
    snapshot, texts = shipped_snapshot(), corpus.shipped("heldout")
    if not texts:
        raise ConfigurationError("this package has no held-out texts")
    words, sentences, second = keywords(), SentenceModel(snapshot), Second()
    rows: list[Row] = []
    say("risky paragraphs in prompts of 5,000 tokens ...")
    found = risky(texts)
    for name, share, goal in (
        ("missed risk, English", [one for one in found if one.language == "en"], 3.0),
        ("missed risk, other languages", [one for one in found if one.language != "en"], 6.0),
    ):
        missed = _percent([not _moves(one.text, snapshot) for one in share])
        for baseline, scanner in ((_LITERALS, snapshot.scanner), (_KEYWORDS, words)):
            other = _percent([not found_by(scanner, one.text) for one in share])
            rows.append(_row(name, f"{len(share)} prompts", missed, baseline, other, goal))
        both = _percent([not _moves(one.text, snapshot, second.ask) for one in share])
        rows.append(_row(f"{name}, {_WITH}", f"{len(share)} prompts", both, _LINEAR, missed, goal))
        if share[0].language == "en":
            other = _percent([not sentences.finds(one.text) for one in share])
            rows.append(_row(name, f"{len(share)} prompts", missed, _SENTENCES, other, goal))
            rows.append(_row(f"{name}, {_WITH}", f"{len(share)} prompts", both, _SENTENCES, other, goal))
    say("texts by themselves ...")
    for language, goal in (("en", 3.0), ("other", 6.0)):
        own = [one for one in texts if (one.language == "en") is (language == "en")]
        bad = [one.text for one in own if one.domain != HARMLESS]
        good = [one.text for one in own if one.domain == HARMLESS]
        named = "English" if language == "en" else "other languages"
        missed = _percent([not _moves(text, snapshot) for text in bad])
        moved = _percent([_moves(text, snapshot) for text in good])
        both_miss = _percent([not _moves(text, snapshot, second.ask) for text in bad])
        both_move = _percent([_moves(text, snapshot, second.ask) for text in good])
        missed_by, moved_by = (_percent([found_by(words, text) is want for text in those]) for those, want in
                               ((bad, False), (good, True)))  # fmt: skip
        rows.append(
            _row(f"missed risk in a short text, {named}", f"{len(bad)} texts", missed, _KEYWORDS, missed_by, goal)
        )
        rows.append(_row(f"harmless short texts moved, {named}", f"{len(good)} texts", moved, _KEYWORDS, moved_by, 3.0))
        shapes = f"{len(bad)} texts", f"{len(good)} texts"
        rows += [
            _row(f"missed risk in a short text, {named}, {_WITH}", shapes[0], both_miss, _LINEAR, missed, goal),
            _row(f"harmless short texts moved, {named}, {_WITH}", shapes[1], both_move, _LINEAR, moved, 3.0),
        ]
    say("literals in other forms ...")
    rows += [_forms(snapshot, "literals as documents write them: missed", DOCUMENTS, 0.0),
             _forms(snapshot, "literals in disguise: missed", DISGUISES, 20.0)]  # fmt: skip
    say("harmless prompts of 5,000 tokens ...")
    for distinct in (DISTINCT, len(texts)):
        prompts = harmless(texts, _HARMLESS_EACH, distinct)
        rows += _harmless(
            snapshot,
            prompts,
            words,
            sentences,
            second,
            f"{distinct} near misses" if distinct == DISTINCT else "all of them",
        )
    good = [one.text for one in texts if one.domain == HARMLESS]
    rows += [_undeclared(snapshot, good), _undeclared(snapshot, good, second)]
    say("time and memory ...")
    costs = second.time([one.text for one in harmless(texts, _HARMLESS_EACH, DISTINCT)], snapshot)
    return [*rows, *_time(snapshot, found), *costs, _memory()]


def _percent(hits: Sequence[bool]) -> float:
    return 100.0 * sum(hits) / len(hits)


def _row(name: str, shape: str, value: float, baseline: str, other: float, goal: float) -> Row:
    ratio = other / value if value else None
    return Row(name, shape, value, "%", baseline, other, ratio, f"at most {goal:g}", value <= goal)


def _moves(text: str, snapshot: Snapshot, ask: Ask | None = None) -> bool:
    """Whether a request of a low-risk domain with this text is moved or flagged."""
    _, matched, alarm = judge(text, snapshot, ask)
    return matched or bool(alarm)


def _forms(snapshot: Snapshot, name: str, forms: Mapping[str, Callable[[str], str]], goal: float) -> Row:
    literals = [literal for item in snapshot.policies.values() for literal in item.policy.detection.literals]
    texts = [_CARRIER.format(change(literal)) for literal in literals for change in forms.values()]
    missed = _percent([not found_by(snapshot.scanner, text) for text in texts])
    plain = _percent([not snapshot.scanner.hits(text.encode()) for text in texts])
    return _row(name, f"{len(literals)} literals, {len(forms)} forms", missed, "the bytes as they are", plain, goal)


def _harmless(
    snapshot: Snapshot,
    prompts: Sequence[LongPrompt],
    words: Scanner,
    sentences: SentenceModel,
    second: Second,
    near: str,
) -> list[Row]:
    rows = []
    for name, those in (
        ("harmless declared prompts moved, English", [one for one in prompts if one.language == "en"]),
        ("harmless declared prompts moved, other languages", [one for one in prompts if one.language != "en"]),
    ):
        moved = _percent([_moves(one.text, snapshot) for one in those])
        baselines: dict[str, Callable[[str], bool]] = {_KEYWORDS: partial(found_by, words)}
        if those[0].language == "en":
            baselines[_SENTENCES] = sentences.finds
        for baseline, finds in baselines.items():
            other = _percent([finds(one.text) for one in those])
            rows.append(_row(name, f"{len(those)} prompts of {near}", moved, baseline, other, 3.0))
        both = _percent([_moves(one.text, snapshot, second.ask) for one in those])
        rows.append(_row(f"{name}, {_WITH}", f"{len(those)} prompts of {near}", both, _LINEAR, moved, 3.0))
    return rows


def _undeclared(snapshot: Snapshot, texts: Sequence[str], second: Second | None = None) -> Row:
    """Texts that nobody declares, and that get a low-risk domain's tier."""
    served = []
    for text in texts:
        weighed, matched, alarm = judge(text, snapshot, second.ask if second else None)
        policy = snapshot.policy(weighed.likely)
        served.append(not matched and not alarm and policy is not None and policy.risk is Risk.LOW)
    value, shape = _percent(served), f"{len(texts)} texts"
    name = "harmless undeclared texts with a low-risk domain's tier" + (f", {_WITH}" if second else "")
    return Row(name, shape, value, "%", goal="at least 80", met=value >= 80)


def _time(snapshot: Snapshot, prompts: Sequence[LongPrompt]) -> list[Row]:
    """Processor time of the model alone, for a request that declares `rag`."""
    text = "\n".join(one.text for one in prompts if one.language == "en")
    asked = wanted(snapshot.policy("rag"), snapshot.risk.policies)
    rows = []
    for size, goal in ((4096, 1.0), (220_000, 50.0)):
        part, times = (text * (size // len(text) + 1))[:size], []
        for _ in range(30):
            started = time.process_time()
            snapshot.risk.model.scores(part, asked)
            times.append(1000 * (time.process_time() - started))
        value = sorted(times)[len(times) // 2]
        shape = f"{size} characters, median of {len(times)}"
        rows.append(Row("processor time", shape, value, "ms", goal=f"at most {goal:g}", met=value <= goal))
    return rows


def _memory() -> Row:
    """Resident memory that the model adds to a process which has the scan already."""
    told = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True).stdout
    value = float(told)
    return Row("resident memory", "after a prompt of 4 MB", value, "MiB", goal="at most 150", met=value <= 150)
