"""Which domain a request is of: the declared one, unless the prompt says that it is of a riskier one.

A linear model reads every window of every prompt. Where that is asked for, a sentence model reads it by meaning, and a
second opinion tells of the parts that the linear model finds likely.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import NamedTuple

from sparsity_policies.decisions.decide import MIN_CONFIDENCE
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.model import DetectionMode, Risk
from sparsity_policies.risk.model import NOTHING, Scores
from sparsity_policies.risk.opinion import Opinions, closer, opined
from sparsity_policies.risk.weighing import UNWEIGHED, Weighed, wanted, weigh

# A window this much like a riskier domain leaves it in doubt that the request is of a less risky one.
DOUBT = 0.25


class Score(NamedTuple):
    """How much a prompt is like a domain's exemplars, as cosine similarity.

    Attributes:
        peak: of the window that is most like them.
        mean: over all windows.
    """

    peak: float
    mean: float


class Detection(NamedTuple):
    """What the classifiers made of a prompt.

    Attributes:
        scores: of the semantic one, by domain; empty where it was not asked, or knows none.
        problem: what kept it from an answer; empty when nothing did.
        risk: of the linear one, and of a second opinion where there is one; nothing where no domain that they know
            could make a difference.
        exemplars: which ones the semantic one answered by, as the hash of their snapshot; None where it was not asked.
        opinions: the second ones, by the text of a part; None where nobody was asked.
    """

    scores: Mapping[str, Score]
    problem: str = ""
    risk: Scores = NOTHING
    exemplars: str | None = None
    opinions: Opinions | None = None


UNASKED = Detection({})


class Asking(IntEnum):
    """Of which requests the semantic classifier is asked, the fewest first."""

    NONE = 0
    UNDECLARED = 1
    DECLARED = 2

    def is_about(self, declared: str, matched: Collection[str], snapshot: Snapshot) -> bool:
        """Whether it could change the domain of a request that declares ``declared``, or none, and in which the scan
        found the domains ``matched``."""
        if not declared:
            # One that the scan is certain of needs no classifier.
            return self >= Asking.UNDECLARED and not matched
        own = snapshot.policy(declared)
        return self >= Asking.DECLARED and own is not None and own.risk is not Risk.HIGH


class Found(NamedTuple):
    """A request's domain.

    Attributes:
        domain: what policy is looked up by; empty when there is none.
        declared: the declared domain, where another took its place.
        detected: whether it was detected.
        confidence: in what was detected, in [0, 1].
        also: other domains that were detected, of the same risk.
    """

    domain: str
    declared: str = ""
    detected: bool = False
    confidence: float = 1.0
    also: tuple[str, ...] = ()


def read_risk(text: str, declared: str, snapshot: Snapshot, opinions: Opinions | None = None) -> Scores:
    """What the linear model makes of a text, for a request that declares a domain, or none.

    Args:
        text: all of it.
        declared: the domain; empty for none.
        snapshot: the policies.
        opinions: those that there are so far; the scores tell what else one could be asked of. None wants none.
    """
    own = snapshot.policy(declared)
    if declared and own is None:
        return NOTHING
    asked = wanted(own, snapshot.risk.policies)
    if not asked:
        return NOTHING
    parts = None if opinions is None else closer(asked, snapshot.risk.taught)
    return opined(snapshot.risk.model.scores(text, asked, parts), opinions or {})


def acts(declared: str, snapshot: Snapshot) -> bool:
    """Whether what a text is like could move a request, or is only observed."""
    own = snapshot.policy(declared)
    if own is not None and own.detection.mode is DetectionMode.OBSERVE:
        return False
    policies = snapshot.risk.policies
    return any(policies[domain].detection.mode is DetectionMode.ACT for domain in wanted(own, policies))


def weighed(declared: str, risk: Scores, snapshot: Snapshot) -> Weighed:
    """What that means by the policies of ``snapshot``."""
    return weigh(snapshot.policy(declared), risk, snapshot.risk.policies) if risk is not NOTHING else UNWEIGHED


def resolve(
    declared: str,
    matched: Collection[str],
    scores: Mapping[str, Score],
    snapshot: Snapshot,
    risk: Weighed = UNWEIGHED,
) -> Found:
    """The riskier of what was declared and what was detected.

    A domain may take a less risky one's place on a single window of the prompt; to be taken as a less risky one, an
    undeclared prompt has to be like it throughout.

    Args:
        declared: the caller's word; empty for none.
        matched: domains whose literals or patterns the prompt has.
        scores: of the semantic classifier; empty when it was not asked.
        snapshot: the policies.
        risk: what the linear model's scores mean.
    """
    named = {declared, *matched, *scores, *risk.raised, risk.doubt, risk.likely}
    risks = {domain: snapshot.policies[domain].policy.risk for domain in named if domain in snapshot.policies}
    # A policy may have been deleted since the classifier was asked.
    scores = {domain: score for domain, score in scores.items() if domain in risks}
    certain = [domain for domain in matched if domain in risks]
    if declared:
        if declared not in risks:
            return Found(declared)
        sure = {domain: odds for domain, odds in risk.raised.items() if domain in risks} | dict.fromkeys(certain, 1.0)
        sure |= {domain: score.peak for domain, score in scores.items() if score.peak >= MIN_CONFIDENCE} | sure
        return _beside(_riskier(declared, risks, sure) or Found(declared), sure, risks)
    found = [Found(domain, detected=True) for domain in sorted(certain)]
    found += [Found(d, detected=True, confidence=odds) for d, odds in sorted(risk.raised.items()) if d in risks]
    if not found and risk.doubt in risks:
        found = [Found(risk.doubt, detected=True, confidence=1.0 - risk.safety)]
    if not found or not certain:
        found += _by_meaning(scores, risks)
    if not found and risk.likely in risks:
        found = [Found(risk.likely, detected=True, confidence=risk.safety)]
    if not found:
        return Found("")
    return _beside(max(found, key=lambda one: (risks[one.domain], one.confidence)), {f.domain for f in found}, risks)


def _beside(found: Found, detected: Collection[str], risks: Mapping[str, Risk]) -> Found:
    """With what else was detected of its risk: which of them it is of, nobody knows."""
    alike = {domain for domain in detected if risks[domain] is risks[found.domain]} - {found.domain}
    return found._replace(also=tuple(sorted(alike)))


def _by_meaning(scores: Mapping[str, Score], risks: Mapping[str, Risk]) -> list[Found]:
    """What the semantic classifier takes an undeclared prompt for; several where it may be of each, as risky."""
    if not scores:
        return []
    domain, score = max(sorted(scores.items()), key=lambda pair: pair[1].mean)
    doubtful = [name for name, other in scores.items() if other.peak >= DOUBT and risks[name] > risks[domain]]
    if doubtful:
        most = max(risks[name] for name in doubtful)
        riskiest = [name for name in sorted(doubtful) if risks[name] is most]
        return [Found(name, detected=True, confidence=max(scores[name].peak, 0.0)) for name in riskiest]
    return [Found(domain, detected=True, confidence=max(score.mean, 0.0))]


def _riskier(declared: str, risks: Mapping[str, Risk], sure: Mapping[str, float]) -> Found | None:
    riskier = [domain for domain in sure if risks[domain] > risks[declared]]
    if not riskier:
        return None
    domain = max(sorted(riskier), key=lambda name: (risks[name], sure[name]))
    return Found(domain, declared, detected=True, confidence=min(sure[domain], 1.0))
