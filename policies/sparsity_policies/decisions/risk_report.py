"""How often detection misses risk, and how often it sees some where there is none, over labelled texts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from typing import Final, NamedTuple

from sparsity_rpc.errors import InvalidRequestError, Violation

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.matching.folding import folded
from sparsity_policies.model import Risk
from sparsity_policies.risk.corpus import HARMLESS, Labelled
from sparsity_policies.risk.opinion import Opinions, closer, opined
from sparsity_policies.risk.weighing import Weighed, weigh

# Asks for second opinions on parts of texts.
Ask = Callable[[Sequence[str]], Opinions | None]
_NORMAL_95: Final = 1.959964


class Interval(NamedTuple):
    """A share with its 95 % interval (Wilson, JASA 1927)."""

    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Interval:
        """The interval of ``count`` in ``total``, which is at least one."""
        share, squared = count / total, _NORMAL_95**2
        middle = (share + squared / (2 * total)) / (1 + squared / total)
        half = _NORMAL_95 / (1 + squared / total) * sqrt(share * (1 - share) / total + squared / (4 * total * total))
        return cls(share, max(middle - half, 0.0), min(middle + half, 1.0))


class Verdict(NamedTuple):
    """What detection made of one text.

    Attributes:
        text: the text.
        alarm: the high-risk domain that it would be moved to; empty for none.
        probability: of the most likely high-risk domain.
        matched: whether a literal or pattern was found.
        unsure: whether it would be dense for doubt, were its domain not declared.
    """

    text: Labelled
    alarm: str
    probability: float
    matched: bool
    unsure: bool


class Line(NamedTuple):
    """The texts of one domain and language.

    Attributes:
        domain: `harmless` or a domain of low risk, or one that is to be found.
        language: as the file has it.
        texts: how many.
        wrong: share of them that was missed or, where there is no risk, moved.
        unsure: share that would be dense for doubt, were their domain not declared.
        worst: ids of wrong ones, the worst first.
    """

    domain: str
    language: str
    texts: int
    wrong: Interval
    unsure: float
    worst: tuple[str, ...]


class Report(NamedTuple):
    """All of it.

    Attributes:
        risky: lines of missed risk.
        harmless: lines of false alarms.
        milliseconds_per_kilobyte: processor time.
    """

    risky: tuple[Line, ...]
    harmless: tuple[Line, ...]
    milliseconds_per_kilobyte: float


def judge(text: str, snapshot: Snapshot, ask: Ask | None = None) -> tuple[Weighed, bool, str]:
    """What a text is like, whether a literal or pattern is in it, and the high-risk domain it would be moved to.

    Args:
        text: all of it.
        snapshot: the policies.
        ask: for a second opinion on the parts that the linear model finds likely; None leaves its word as it is.
    """
    read = folded(text).encode("utf-8", "surrogatepass")
    scanned = snapshot.scanner.scan(text.encode("utf-8", "surrogatepass") + b"\n" + read)
    known = snapshot.risk.policies
    scores = snapshot.risk.model.scores(text, known, closer(known, snapshot.risk.taught) if ask else None)
    if ask and scores.likely:
        scores = opined(scores, ask([part.text for part in scores.likely]) or {})
    weighed = weigh(None, scores, known)
    risks = {domain: item.policy.risk for domain, item in snapshot.policies.items()}
    certain = sorted(domain for domain in scanned.domains if risks[domain] is Risk.HIGH)
    likely = sorted(
        (domain for domain in weighed.raised if risks[domain] is Risk.HIGH), key=lambda domain: -weighed.raised[domain]
    )
    return weighed, bool(scanned.flags or scanned.domains), (*certain, *likely, "")[0]


def check(texts: Sequence[Labelled], snapshot: Snapshot, source: str) -> None:
    """Finds what makes a file useless.

    Raises:
        InvalidRequestError: for a domain without a policy, or when there are only texts of one kind.
    """
    known = {HARMLESS, *snapshot.policies}
    unknown = [one for one in texts if one.domain not in known]
    if unknown:
        problem = f"has no policy; domains are {', '.join(sorted(known))}"
        raise InvalidRequestError(*(Violation(f"{source}: id {one.id}: {one.domain}", problem) for one in unknown[:20]))
    kinds = {_is_risky(one, snapshot) for one in texts}
    if len(kinds) < 2:
        missing = "harmless ones or of a domain of less" if True in kinds else "of a domain of high risk"
        raise InvalidRequestError.of(source, f"has {len(texts)} texts of one class; add texts {missing}")


def _is_risky(one: Labelled, snapshot: Snapshot) -> bool:
    policy = snapshot.policy(one.domain)
    return policy is not None and policy.risk is Risk.HIGH


def report(texts: Sequence[Labelled], snapshot: Snapshot, worst: int = 5, ask: Ask | None = None) -> Report:
    """Judges every text.

    Args:
        texts: checked by :func:`check`.
        snapshot: the policies.
        worst: ids told for each line at most.
        ask: as :func:`judge`.
    """
    started, size = time.process_time(), 0
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for one in texts:
        weighed, matched, alarm = judge(one.text, snapshot, ask)
        size += len(one.text.encode("utf-8", "surrogatepass"))
        groups[one.domain, one.language].append(
            Verdict(one, alarm, 1.0 - weighed.safety, matched, bool(weighed.doubt) and not alarm)
        )
    spent = time.process_time() - started
    risky = [group for group in sorted(groups) if _is_risky(groups[group][0].text, snapshot)]
    return Report(
        tuple(_line(groups[group], worst, risky=True) for group in risky),
        tuple(_line(groups[group], worst, risky=False) for group in sorted(groups) if group not in risky),
        1000 * spent / max(size / 1024, 1e-9),
    )


def _line(verdicts: Sequence[Verdict], worst: int, *, risky: bool) -> Line:
    wrong = [one for one in verdicts if bool(one.alarm) is not risky]
    wrong.sort(key=lambda one: (one.probability if risky else -one.probability, one.text.id))
    share = Interval.of(len(wrong), len(verdicts))
    unsure = sum(one.unsure for one in verdicts) / len(verdicts)
    first = verdicts[0].text
    ids = tuple(one.text.id for one in wrong[:worst])
    return Line(first.domain, first.language, len(verdicts), share, unsure, ids)


def totals(lines: Iterable[Line]) -> Interval:
    """All lines together."""
    counted = [(round(line.wrong.share * line.texts), line.texts) for line in lines]
    return Interval.of(sum(wrong for wrong, _ in counted), sum(count for _, count in counted))
