"""What the scores of a text mean for a request: domains that it is moved to, doubts, and what else it may be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from sparsity_policies.model import DetectionMode, Policy, Risk, Sensitivity
from sparsity_policies.risk.corpus import RISKY
from sparsity_policies.risk.features import codes_of
from sparsity_policies.risk.model import Scores

# Probability that is enough for a domain, by its sensitivity.
THRESHOLDS: Final = {Sensitivity.LOW: 0.9, Sensitivity.NORMAL: 0.5, Sensitivity.HIGH: 0.2}
# An undeclared prompt with a window that is this likely of a high-risk domain is not taken for one of low risk.
DOUBT: Final = 0.25


class Finding(NamedTuple):
    """One domain that a text was held against.

    Attributes:
        domain: its name.
        probability: that a part of the text is of it.
        threshold: what is enough.
        outcome: `moved`, `observed`, `doubt` or `none`.
        start: first character of the window, in the text as it is read.
        end: the one behind its last.
        first: the linear model's word by itself, where there is a second opinion; else None.
        second: the second opinion by itself; None where there is none.
    """

    domain: str
    probability: float
    threshold: float
    outcome: str
    start: int = 0
    end: int = 0
    first: float | None = None
    second: float | None = None


class Weighed(NamedTuple):
    """What a text's scores mean.

    Attributes:
        findings: the most likely first; empty where nothing was asked.
        raised: domains that it is sure to be of, with their probabilities.
        doubt: the high-risk domain that it may be of, where none is sure; empty for none.
        likely: the domain of less risk that it is most like, where there is no doubt; empty for none.
        safety: probability that no window is of a high-risk domain.
    """

    findings: tuple[Finding, ...] = ()
    raised: Mapping[str, float] = {}
    doubt: str = ""
    likely: str = ""
    safety: float = 1.0


UNWEIGHED: Final = Weighed()


def wanted(own: Policy | None, policies: Mapping[str, Policy]) -> Collection[str]:
    """Domains that a request's text is to be held against: those that could make a difference to it.

    Args:
        own: of its declared domain; None for a request that declares none.
        policies: of the domains that a model knows.
    """
    if own is not None and own.detection.mode is DetectionMode.OFF:
        return ()
    least = own.risk if own else 0
    return {domain for domain, policy in policies.items() if policy.risk > least and is_read_for(policy)}


def is_read_for(policy: Policy) -> bool:
    """Whether texts are held against a domain."""
    return policy.detection.mode in (DetectionMode.ACT, DetectionMode.OBSERVE)


def acting(policies: Iterable[Policy]) -> list[Policy]:
    """The policies as they were if every domain acted on what texts are like."""
    return [replace(each, detection=replace(each.detection, mode=DetectionMode.ACT)) for each in policies]


def weigh(own: Policy | None, scores: Scores, policies: Mapping[str, Policy]) -> Weighed:
    """Weighs the scores of a text.

    A window is enough for a domain of high risk. One of elevated risk says what a request is about, not what harm it
    may do: the text must be like it throughout.

    Args:
        own: policy of the request's declared domain; None for a request that declares none.
        scores: of its text.
        policies: of the domains that the model knows.
    """
    asked = wanted(own, policies)
    observed = own is not None and own.detection.mode is DetectionMode.OBSERVE
    findings, raised = [], {}
    for domain in sorted(scores.peaks.keys() & set(asked)):
        policy, window = policies[domain], scores.peaks[domain]
        if policy.risk is Risk.LOW:
            continue
        probability = window.probability if policy.risk is Risk.HIGH else _throughout(domain, scores)
        threshold = THRESHOLDS[policy.detection.sensitivity]
        outcome = "none"
        if probability >= threshold:
            outcome = "observed" if observed or policy.detection.mode is DetectionMode.OBSERVE else "moved"
        elif probability >= min(DOUBT, threshold) and policy.risk is Risk.HIGH and own is None:
            outcome = "doubt"
        if outcome == "moved":
            raised[domain] = probability
        findings.append(Finding(domain, probability, threshold, outcome, *window[:2], window.first, window.second))
    findings.sort(key=lambda finding: (-finding.probability, finding.domain))
    high = [finding for finding in findings if policies[finding.domain].risk is Risk.HIGH]
    safety = 1.0 - max((finding.probability for finding in high), default=0.0)
    doubt = next((finding.domain for finding in high if finding.outcome == "doubt"), "")
    likely = "" if own or doubt or not scores.means else _likely(scores, policies)
    return Weighed(tuple(findings), raised, doubt, likely, safety)


def _throughout(domain: str, scores: Scores) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(scores.means[domain], -50.0, 50.0))))


def _likely(scores: Scores, policies: Mapping[str, Policy]) -> str:
    """The domain below high risk that a text is most like on the whole; none unless all known risk would move it."""
    if not all(domain in policies and policies[domain].detection.mode is DetectionMode.ACT for domain in RISKY):
        return ""
    candidates = {
        domain: mean
        for domain, mean in scores.means.items()
        if domain in policies
        and policies[domain].risk is not Risk.HIGH
        and policies[domain].detection.mode is DetectionMode.ACT
    }
    return max(sorted(candidates), key=candidates.__getitem__, default="")


def placed(findings: Collection[Finding], text: str) -> list[Finding]:
    """Findings with their windows' places in the text as it was written."""
    whole = len(codes_of(text))
    if whole == len(text):
        return list(findings)
    return [finding._replace(start=_place(text, finding.start), end=_place(text, finding.end)) for finding in findings]


def _place(text: str, read: int) -> int:
    """The shortest beginning of ``text`` that is read as ``read`` characters, by bisection."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if len(codes_of(text[:middle])) < read:
            low = middle + 1
        else:
            high = middle
    return low
