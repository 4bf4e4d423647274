"""How an answer is scored, in [0, 1]; several answers mean what the metric's docstring says."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (as SQuAD normalizes, arXiv 1606.05250)."""
    text = "".join(" " if mark in string.punctuation else mark for mark in text.lower())
    return " ".join(word for word in text.split() if word not in {"a", "an", "the"})


def contains(text: str, answers: Sequence[str]) -> float:
    """1 when any of the answers stands in the text as whole words."""
    return float(any(_holds(text, answer) for answer in answers))


def recall(text: str, answers: Sequence[str]) -> float:
    """The share of the answers that stand in the text as whole words."""
    return sum(_holds(text, answer) for answer in answers) / len(answers)


def exact(text: str, answers: Sequence[str]) -> float:
    """1 when the text's first line is one of the answers, both normalized."""
    lines = text.strip().splitlines() or [""]
    return float(normalized(lines[0]) in {normalized(answer) for answer in answers})


def prefix(text: str, answers: Sequence[str]) -> float:
    """The longest share of an answer's characters that the text begins with; code is right up to its first error."""
    return max(_common(text.lstrip(" "), answer) / len(answer) for answer in answers)


def f1(text: str, answers: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall over normalized words."""
    return max(_f1(normalized(text).split(), normalized(answer).split()) for answer in answers)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    metric.__name__: metric for metric in (contains, recall, exact, prefix, f1)
}


def _holds(text: str, answer: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(normalized(answer))}(?!\w)", normalized(text)))


def _common(text: str, answer: str) -> int:
    same = 0
    for one, other in zip(text, answer, strict=False):
        if one != other:
            break
        same += 1
    return same


def _f1(found: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0
