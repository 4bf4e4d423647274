"""The model of a set of policies: the shipped one, and what their own exemplars add to it."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from sparsity_policies.model import Policy, Risk
from sparsity_policies.risk import corpus
from sparsity_policies.risk.base import base, margin
from sparsity_policies.risk.calibration import platt
from sparsity_policies.risk.corpus import HARMLESS, RISKY
from sparsity_policies.risk.examples import pieces, windows, within
from sparsity_policies.risk.features import width
from sparsity_policies.risk.model import Head, RiskModel
from sparsity_policies.risk.training import Learnt, features_of, learn
from sparsity_policies.risk.weighing import is_read_for

log = logging.getLogger("sparsity.policies.risk")
# Each four domains more are one more look into a table for every letter, and two megabytes.
MOST_HEADS: Final = 32
# Shipped texts that are learnt again beside exemplars, so that those do not overrule them.
_REHEARSED: Final = 600
# Looks at a text in all, whatever the number of exemplars: seconds.
_LOOKS: Final = 12_000
_MOST_EPOCHS: Final = 12
_SEED: Final = 23
# How much of the traffic is of a domain that a team adds, only the team knows: its sensitivity says.
_EVEN: Final = 0.5

# Exemplars by domain, those of high risk first; heads that know them.
Learn = Callable[[Mapping[str, Sequence[str]], frozenset[str]], Sequence[Head]]


class PolicyModel(NamedTuple):
    """A model with what it was made for.

    Attributes:
        model: that reads prompts.
        policies: of the domains that it knows and that texts are held against.
        key: of the exemplars that it has learnt beside the shipped ones; empty for none.
        taught: domains that they are of.
    """

    model: RiskModel
    policies: Mapping[str, Policy]
    key: str = ""
    taught: frozenset[str] = frozenset()


def heads_of(exemplars: Mapping[str, Sequence[str]], risky: frozenset[str]) -> Sequence[Head]:
    """The shipped heads, gone on with, and one for each other domain of ``exemplars``.

    Args:
        exemplars: by domain.
        risky: domains of high risk.
    """
    shipped = base().model.heads
    known = {head.domain: number for number, head in enumerate(shipped)}
    domains = [*known, *(domain for domain in exemplars if domain not in known)]
    weights = np.zeros((width(), len(domains)), np.float32)
    biases = np.full(len(domains), -2.0, np.float32)
    for number, head in enumerate(shipped):
        weights[:, number], biases[number] = head.weights, head.bias
    own = [(domain, piece) for domain, texts in exemplars.items() for text in texts for piece in pieces(text)]
    shipped_texts = corpus.shipped("train")
    chance, harmless = random.Random(_SEED), [one.text for one in shipped_texts if one.domain == HARMLESS]
    if harmless:
        own += [(domain, within(text, harmless, chance)) for domain, text in own]
    texts = windows(shipped_texts)
    rehearsed = texts[:: max(len(texts) // _REHEARSED, 1)]
    examples = [(domain, features_of(text)) for domain, text in (*own, *rehearsed)]
    epochs = min(max(_LOOKS // len(examples), 1), _MOST_EPOCHS)
    found = learn(examples, domains, frozenset(RISKY) | risky, epochs, Learnt(weights, biases))
    heads = []
    for number, domain in enumerate(domains):
        line = (shipped[number].slope, shipped[number].intercept) if number < len(shipped) else (1.0, 0.0)
        heads.append(Head(domain, found.weights[:, number].copy(), float(found.biases[number]), *line))
    fresh = [head for head in heads if head.domain not in known]
    return [*(head for head in heads if head.domain in known), *_calibrated(fresh, own)]


def _calibrated(heads: Sequence[Head], own: Sequence[tuple[str, str]]) -> list[Head]:
    """Heads of domains that the shipped texts do not have: their exemplars against all of those."""
    if not heads:
        return []
    others = [features_of(piece) for labelled in corpus.shipped("calibration") for piece in pieces(labelled.text)]
    found = []
    for head in heads:
        mine = [features_of(text) for domain, text in own if domain == head.domain]
        if others and mine:
            margins = np.array([margin(head, each) for each in (*mine, *others)])
            line = platt(margins, np.arange(len(margins)) < len(mine), _EVEN)
            head = head._replace(slope=line.slope, intercept=line.intercept)
        found.append(head)
    return found


def model_of(policies: Iterable[Policy], previous: PolicyModel | None, learn_them: Learn = heads_of) -> PolicyModel:
    """The model for ``policies``; ``previous`` where it has learnt the same.

    Args:
        policies: whose exemplars are learnt.
        previous: the one before.
        learn_them: learns, here or in a process of its own.

    Raises:
        ValueError: when they are not learnt within the limits.
    """
    shipped = base()
    ranked = sorted(policies, key=lambda policy: (-policy.risk, policy.domain))
    own = {
        policy.domain: policy.detection.exemplars
        for policy in ranked
        if is_read_for(policy)
        and policy.detection.exemplars
        and policy.detection.exemplars != shipped.exemplars.get(policy.domain)
    }
    room = MOST_HEADS - len(shipped.model.heads)
    fresh = [domain for domain in own if domain not in shipped.model.domains]
    if len(fresh) > room:
        left_out = fresh[room:]
        log.warning("exemplars of %d domains are not learnt, %s first: %d are", len(left_out), left_out[0], MOST_HEADS)
        own = {domain: texts for domain, texts in own.items() if domain not in left_out}
    if not own:
        return _for(shipped.model, ranked)
    risky = frozenset(policy.domain for policy in ranked if policy.domain in own and policy.risk is Risk.HIGH)
    key = hashlib.sha256(json.dumps([own, sorted(risky)]).encode()).hexdigest()
    same = previous is not None and previous.key == key
    return _for(
        previous.model if previous and same else RiskModel(learn_them(own, risky), shipped.model.lines),
        ranked,
        key,
        own,
    )


def _for(model: RiskModel, policies: Iterable[Policy], key: str = "", taught: Collection[str] = ()) -> PolicyModel:
    known = {policy.domain: policy for policy in policies if policy.domain in model.domains and is_read_for(policy)}
    return PolicyModel(model, known, key, frozenset(taught))
