"""Proves at start that the attention backend in use is the one the tier promises."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.config import ModelFacts
from sparsity_worker.engine.sglang_engine import Engine, EngineRequest
from sparsity_worker.keys import PROBE_KEY
from sparsity_worker.plugin.accounts.ledger import Account
from sparsity_worker.plugin.accounts.shares import PREFILL
from sparsity_worker.profiles.tier_profile import TierProfile

# Of an engine without a profile.
_DENSE_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Proof:
    """What the probe measured.

    Attributes:
        prompt_tokens: the probe's prompt length.
        sparse_calls: kernel calls that pruned something.
        calls: kernel calls in all; 0 where only the dense tier is served, which keeps no account.
        density: attended over causal pairs of the prompt, mean over layers.
        time: when, seconds since the epoch.
        facts: what the sparse backend says of how it was set up; empty without one.
    """

    prompt_tokens: int
    sparse_calls: int
    calls: int
    density: float
    time: float
    facts: Mapping[str, Any] = field(default_factory=dict)


async def probe(engine: Engine, facts: ModelFacts, tier: str, profiles: Mapping[str, TierProfile]) -> Proof:
    """Runs one request of a tier, which must prune on a sparse one and nothing on the dense one.

    Args:
        engine: that serves it.
        facts: its model.
        tier: to be proved.
        profiles: of all sparse tiers of the engine.

    Raises:
        ConfigurationError: when the counters do not show it.
    """
    profile = profiles.get(tier)
    # The dense tier's is as long as would be pruned if it were taken for another tier's.
    told = [profile] if profile else profiles.values()
    length = min(max((each.probe_tokens for each in told), default=_DENSE_TOKENS), facts.context_length - 2)
    prompt = np.random.default_rng(0).integers(0, facts.vocabulary_size, length).tolist()
    packed, setup = b"", ""
    # Marked as the probe, so that a short prompt proves what a profile would only do to a long one.
    sampling = {"temperature": 0.0, "max_new_tokens": 2, "ignore_eos": True, "custom_params": {PROBE_KEY: True}}
    # A salt of its own: no request may be answered by what a short prompt's keys are under a mark for long ones.
    request = EngineRequest("start-up-probe", prompt, sampling, tier, uuid.uuid4().hex)
    async for step in engine.generate(request):
        packed, setup = step.account or packed, step.facts or setup
    if not profiles:
        if packed:
            raise ConfigurationError("the dense tier ran the sparsity backend; start it without --profile")
        return Proof(length, 0, 0, 1.0, time.time())
    if not packed:
        raise ConfigurationError(
            f"tier {tier}: the probe of {length} tokens brought no account:"
            f" the {engine.backend} backend is not active;"
            " check that the package is installed with its SGLang plugin entry points"
        )
    account = Account.unpack(packed)
    density = float(account.density(PREFILL).mean())
    how = json.loads(setup) if setup else {}
    if profile is None:
        if account.sparse_calls or density != 1.0 or not account.calls:
            raise ConfigurationError(
                f"tier {tier}: the probe of {length} tokens did not attend everything (density {density:.3f},"
                f" {account.sparse_calls} of {account.calls} calls sparse)"
            )
    elif not account.sparse_calls or density >= 1.0:
        raise ConfigurationError(
            f"tier {tier}: the probe of {length} tokens pruned nothing (density {density:.3f},"
            f" {account.sparse_calls} of {account.calls} calls sparse); check the profile {profile.label}"
        )
    return Proof(length, account.sparse_calls, account.calls, density, time.time(), how)
