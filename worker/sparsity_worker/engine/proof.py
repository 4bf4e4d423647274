"""Proves at start that the attention backend in use is the one the tier promises."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sparsity_rpc.errors import BackendInactiveError

from sparsity_worker.config import ModelFacts
from sparsity_worker.engine.sglang_engine import Engine, EngineRequest
from sparsity_worker.keys import PROBE_KEY
from sparsity_worker.plugin.accounts.ledger import PREFILL, Account
from sparsity_worker.profiles.tier_profile import TierProfile


@dataclass(frozen=True, slots=True)
class Proof:
    """What the probe measured.

    Attributes:
        prompt_tokens: the probe's prompt length.
        sparse_calls: kernel calls that pruned something.
        calls: kernel calls in all; 0 on the dense tier, which keeps no account.
        density: attended over causal pairs of the prompt, mean over layers.
        time: when, seconds since the epoch.
        facts: what the sparse backend says of how it was set up; empty on the dense tier.
    """

    prompt_tokens: int
    sparse_calls: int
    calls: int
    density: float
    time: float
    facts: Mapping[str, Any] = field(default_factory=dict)


async def probe(engine: Engine, facts: ModelFacts, profile: TierProfile | None) -> Proof:
    """Runs one request that must prune on a sparse tier, and must not report pruning on the dense one.

    Raises:
        BackendInactiveError: when the counters do not show it.
    """
    length = 64
    if profile:
        length = min(profile.probe_tokens, facts.context_length - 2)
    prompt = np.random.default_rng(0).integers(0, facts.vocabulary_size, length).tolist()
    packed, setup = b"", ""
    # Marked as the probe, so that a short prompt proves what a profile would only do to a long one.
    sampling = {"temperature": 0.0, "max_new_tokens": 2, "ignore_eos": True, "custom_params": {PROBE_KEY: True}}
    request = EngineRequest("start-up-probe", prompt, sampling)
    async for step in engine.generate(request):
        packed, setup = step.account or packed, step.facts or setup
    if profile is None:
        if packed:
            raise BackendInactiveError("the dense tier ran the sparsity backend; start it without --profile")
        return Proof(length, 0, 0, 1.0, time.time())
    if not packed:
        raise BackendInactiveError(
            f"tier {profile.tier}: the probe of {length} tokens brought no account:"
            f" the {profile.backend} backend is not active;"
            " check that the package is installed with its SGLang plugin entry points"
        )
    account = Account.unpack(packed)
    density = float(account.density(PREFILL).mean())
    if not account.sparse_calls or density >= 1.0:
        raise BackendInactiveError(
            f"tier {profile.tier}: the probe of {length} tokens pruned nothing (density {density:.3f},"
            f" {account.sparse_calls} of {account.calls} calls sparse); check the profile {profile.label}"
        )
    how = json.loads(setup) if setup else {}
    return Proof(length, account.sparse_calls, account.calls, density, time.time(), how)
