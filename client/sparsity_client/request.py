"""What a caller asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sparsity_rpc.tiers import Tier


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its id, the tool's name and its arguments, a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: who speaks; what a developer says, a model that knows no such role takes as the system's.
        content: what is said.
        tool_calls: what the assistant called in this turn.
        tool_call_id: of a tool's turn, the call that it answers.
        name: of a tool's turn, the tool.
        reasoning: what the assistant thought before it said that.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that the model may call.

    Attributes:
        name: 1 to 64 letters, digits, `_` and `-`.
        description: what it is for.
        parameters: a JSON schema of its arguments, as JSON or as what JSON is written from; None takes none.
        strict: calls are held to that schema.
    """

    name: str
    description: str | None = None
    parameters: str | Mapping[str, object] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class CalledTool:
    """The choice of one tool: the model calls it."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | CalledTool


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """Answers that are JSON and fit a schema, given as JSON or as what JSON is written from."""

    schema: str | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Answers that are a JSON object, whichever."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Answers that a regular expression matches whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Grammar:
    """Answers of a grammar in extended Backus-Naur form, from its rule `root` on."""

    text: str


ResponseFormat = JsonSchema | JsonObject | Regex | Grammar


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of the answer's tokens.

    Attributes:
        top: the likeliest tokens at each place, 20 at most.
        prompt: of the prompt's tokens, too.
    """

    top: int = 0
    prompt: bool = False


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
    """How tokens are sampled; what is None, the model's generation_config.json decides, or the service.

    Attributes:
        max_new_tokens: tokens to generate at most; as the router has it where unset (`--default-new-tokens`).
        temperature: 0 is greedy; 2 at most.
        top_p: nucleus mass in (0, 1].
        top_k: candidates kept, 1 or more.
        stop: texts that end generation.
        seed: of the sampler; refused where the engine's takes none.
        ignore_eos: generates past the end-of-sequence token.
        frequency_penalty: in [-2, 2].
        presence_penalty: in [-2, 2].
        response_format: what the answer is held to by a grammar.
        logit_bias: added to the logits of single tokens, each in [-100, 100].
        repetition_penalty: in [0.125, 2]; 1 has no effect.
        min_p: share of the likeliest token's probability that a candidate has at least, in [0, 1].
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
    response_format: ResponseFormat | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float | None = None
    min_p: float | None = None


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
        model: which is asked; None is the one that the router serves.
        tools: what the model may call, in a chat.
        tool_choice: whether it may, or must; None lets it.
        chat_template_kwargs: variables of the model's chat template.
        reasoning_effort: how much the model thinks, a word that its chat template knows.
        logprobs: log-probabilities that the answer carries.
        n: answers, 1 to 16, each drawn by itself; a stream's `answers()` gives all.
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
    model: str | None = None
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | None = None
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    reasoning_effort: str | None = None
    logprobs: Logprobs | None = None
    n: int | None = None
