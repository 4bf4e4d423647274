"""What the service answers. Field meanings are those of `sparsity.v1`; times are seconds.

Words of the contract's enumerations stand without their prefix, as `LENGTH_BAND` for `REASON_LENGTH_BAND`; later
versions of the service may add some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsity_rpc.tiers import Tier

from sparsity_client.request import ToolCall


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A token that might have stood in another's place: its bytes, and the logarithm of its probability."""

    token_id: int
    token: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely it was.

    Attributes:
        token_id: the token.
        token: what it is in the text, which may end within a character.
        logprob: natural logarithm of its probability; None for a prompt's first token.
        top: the likeliest tokens at its place.
    """

    token_id: int
    token: bytes
    logprob: float | None
    top: tuple[TokenAlternative, ...]


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call: which of the answer's calls; id and tool in its first part only; more of its arguments."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came since the last one.

    Attributes:
        text: whole characters.
        token_ids: their tokens.
        reasoning: what the model thinks before it answers.
        tool_calls: parts of calls.
        logprobs: one for each token, where they were asked for.
        prompt_logprobs: one for each of the prompt's tokens, where they were asked for; in the first chunk.
        choice: which of the answers it is of, from 0 on.
    """

    text: str
    token_ids: tuple[int, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and times, seconds from the worker's receipt."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    time_to_first_token: float
    total_time: float
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The tier that a request got, and why.

    Attributes:
        decision_id: what an outcome is reported by.
        tier: the tier that serves.
        reason: why, such as `LENGTH_BAND` or `KILL_SWITCH`.
        matched_rule: the rule or band that decided; empty for none.
        policy: the policy whose document decided; `default` for unknown domains.
        policy_revision: the store's revision.
        policy_tier: the tier that policy gave, before a fallback to a denser one.
        explanation: one sentence for people.
        dense_reasoning: reasoning spans decode densely.
    """

    decision_id: str
    tier: Tier
    reason: str
    matched_rule: str
    policy: str
    policy_revision: int
    policy_tier: Tier
    explanation: str
    dense_reasoning: bool


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Densities and estimated coverage of one layer."""

    prefill_density: float
    decode_density: float
    coverage: float


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """What the attention kernels did for one request; densities are attended over causal pairs.

    Attributes:
        tier: the worker's.
        profile: name and version of its profile.
        backend: the attention backend that ran.
        prefill_density: of the prompt, mean over layers.
        decode_density: of the generated tokens.
        coverage: the estimated share of softmax mass kept, mean over layers.
        min_layer_coverage: the lowest of any layer.
        layers: one a layer; empty for a dense backend.
        sparse_kernel_calls: calls that pruned something.
        kernel_calls: calls in all.
        dense_reasoning_tokens: tokens that decoded densely as reasoning.
        measured_coverage: coverage against every key on some rows; None where nothing was measured.
        measured_rows: the rows.
    """

    tier: Tier
    profile: str
    backend: str
    prefill_density: float
    decode_density: float
    coverage: float
    min_layer_coverage: float
    layers: tuple[LayerReport, ...]
    sparse_kernel_calls: int
    kernel_calls: int
    dense_reasoning_tokens: int
    measured_coverage: float | None
    measured_rows: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole completion.

    Attributes:
        text: what was generated.
        token_ids: the same in tokens.
        finish_reason: `STOP`, `LENGTH` or `TOOL_CALLS`.
        usage: tokens and times.
        decision: the tier, and why.
        sparsity: what was attended; None where nothing was reported, and ``unreported`` says why.
        unreported: why there is no report; empty where there is one.
        worker_id: who answered.
        model: what answered.
        reasoning: what the model thought before it answered.
        tool_calls: what it called.
        logprobs: one for each token, where they were asked for.
        prompt_logprobs: one for each of the prompt's tokens, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    decision: Decision
    sparsity: SparsityReport | None
    unreported: str
    worker_id: str
    model: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Signals:
    """What was known of a request when it was decided.

    Attributes:
        min_tokens: tokens of its prompt, at least.
        max_tokens: at most; equal where they were counted.
        prompt_bytes: bytes there were to scan, of its prompt and of what comes with it.
        scanned_bytes: bytes of them that were scanned for risk.
        domain: what policy was looked up by; empty for none.
        domain_source: `DECLARED` or `DETECTED`; empty for none.
        declared_domain: the caller's, where a riskier one took its place.
        also_found: other domains of the same risk, whose policies may only have made it denser.
        confidence: in a detected domain, in [0, 1]; None is certain.
        flags: of caller and scan.
        model: that serves the request, by the name that the router has for it; empty is none in particular.
        task: as declared.
        labels: as declared.
        tenant: as declared.
        session: as declared.
        max_tier: the sparsest that the caller accepts; None is any.
        session_tier: what the session's earlier requests hold it at, whatever their length; None without any.
        dense_reasoning: the caller asks that reasoning spans decode densely.
        classifier_error: what kept the classifier from an answer; empty for nothing.
    """

    min_tokens: int
    max_tokens: int
    prompt_bytes: int
    scanned_bytes: int
    domain: str
    domain_source: str
    declared_domain: str
    also_found: tuple[str, ...]
    confidence: float | None
    flags: tuple[str, ...]
    model: str
    task: str
    labels: Mapping[str, str]
    tenant: str
    session: str
    max_tier: Tier | None
    session_tier: Tier | None
    dense_reasoning: bool
    classifier_error: str


@dataclass(frozen=True, slots=True)
class Step:
    """One check of a decision: whether it decided or capped the tier, what it found, and the tier it then gave."""

    check: str
    matched: bool
    detail: str
    tier: Tier | None


@dataclass(frozen=True, slots=True)
class RiskFinding:
    """The part of a prompt, in characters of it, that is most like a domain, how likely, and what came of it.

    Where a second opinion was asked for, the last two are what the linear model and it say by themselves.
    """

    domain: str
    probability: float
    threshold: float
    outcome: str
    start: int
    end: int
    first_opinion: float | None = None
    second_opinion: float | None = None


@dataclass(frozen=True, slots=True)
class ScanMatch:
    """A literal or pattern of a domain's policy, the form of the prompt that has it, and where, in characters of it."""

    domain: str
    flag: str
    expression: str
    form: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and how it came to be.

    Attributes:
        signals: what was known.
        decision: what was decided.
        steps: every step, in order.
        alternatives: what would have to be different for another tier.
        findings: what the text is like, the most likely first.
        matches: where literals and patterns were found, in the order of the text.
    """

    signals: Signals
    decision: Decision
    steps: tuple[Step, ...]
    alternatives: tuple[str, ...]
    findings: tuple[RiskFinding, ...] = ()
    matches: tuple[ScanMatch, ...] = ()
