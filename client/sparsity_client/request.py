"""What a caller asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sparsity_rpc.tiers import Tier


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class RawText:
    """A prompt that goes to the model as it is, without its chat template."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt in tokens of the served model."""

    ids: Sequence[int]


# A text is what a user says in a chat; messages are a chat, oldest first.
Prompt = str | Sequence[Message] | RawText | TokenIds


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled; what is None, the service decides.

    Attributes:
        max_new_tokens: tokens to generate at most, 128 by default.
        temperature: 0, the default, is greedy; 2 at most.
        top_p: nucleus mass in (0, 1].
        top_k: candidates kept, 1 or more.
        stop: texts that end generation.
        seed: of the sampler, where the engine supports one.
        ignore_eos: generates past the end-of-sequence token.
        frequency_penalty: in [-2, 2].
        presence_penalty: in [-2, 2].
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    ignore_eos: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a completion.

    Attributes:
        prompt: what is asked.
        domain: the risk domain, such as `medical` or `rag`; without one the router looks for it in the text.
        task: what is asked, such as `qa` or `summarize`.
        flags: each makes the request dense.
        labels: free; policy rules can read them.
        tenant: who asks.
        session: the conversation; it gets denser, never sparser.
        max_tier: no tier sparser than this.
        dense_reasoning: reasoning spans of the answer decode densely.
        sampling: how tokens are sampled.
        priority: 0 (the default) to 9 (first).
        request_id: a label for traces and logs; nothing is looked up by it.
    """

    prompt: Prompt
    domain: str | None = None
    task: str | None = None
    flags: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    session: str | None = None
    max_tier: Tier | None = None
    dense_reasoning: bool = False
    sampling: Sampling = Sampling()
    priority: int | None = None
    request_id: str | None = None
