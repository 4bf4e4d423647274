"""Every field of OpenAI's two requests, and what becomes of it: the parser goes by it, and so does docs/http.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sparsity_router.gateway import formats, parameters, tools
from sparsity_router.gateway.asking import Field, ignored, refused, taken
from sparsity_router.gateway.prompts import messages, prompt

_OURS = "not OpenAI's, as vLLM and SGLang have it"
_ALLOWED = "where workers run with `--allow-expressions`"
_TOOLS = "send `tools`"


def _by_name(fields: Iterable[Field]) -> dict[str, Field]:
    return {field.name: field for field in fields}


_COMMON: Final = (
    taken("model", "a served model's name, as `/v1/models` lists it; needed", parameters.model),
    taken("stream", "answers by server-sent events", parameters.stream),
    taken("stream_options", "`include_usage`; `include_obfuscation` is ignored", parameters.stream_options),
    taken("metadata", "what policy looks at (below); other names are refused", parameters.metadata),
    taken("max_tokens", "the model's default when unset, or `--default-new-tokens`, as far as there is room",
          parameters.new_tokens, "sampling.max_new_tokens"),
    taken("temperature", "0 to 2; the model's default when unset", parameters.sampled("temperature"),
          "sampling.temperature"),
    taken("top_p", "above 0, to 1", parameters.sampled("top_p"), "sampling.top_p"),
    taken("frequency_penalty", "-2 to 2", parameters.sampled("frequency_penalty"), "sampling.frequency_penalty"),
    taken("presence_penalty", "-2 to 2", parameters.sampled("presence_penalty"), "sampling.presence_penalty"),
    taken("stop", "a text, or 16 at most", parameters.stop, "sampling.stop"),
    taken("seed", "0 or more; refused where the engine's sampler takes none", parameters.seed, "sampling.seed"),
    taken("logit_bias", "by token ids, -100 to 100", formats.logit_bias, "sampling.logit_bias"),
    taken("top_k", f"0 or -1 for all; {_OURS}", parameters.top_k, "sampling.top_k"),
    taken("min_p", _OURS, parameters.sampled("min_p"), "sampling.min_p"),
    taken("repetition_penalty", _OURS, parameters.sampled("repetition_penalty"), "sampling.repetition_penalty"),
    taken("regex", f"what the whole answer matches; {_ALLOWED}; {_OURS}", formats.regex, "sampling.response_format"),
    taken("ebnf", f"a grammar of the answer; {_ALLOWED}; {_OURS}", formats.ebnf, "sampling.response_format"),
    taken("ignore_eos", _OURS, parameters.ignore_eos, "sampling.ignore_eos"),
    taken("priority", f"0 to 9, where 9 comes first; {_OURS}", parameters.priority, "priority"),
    ignored("user", "tenants are told by keys, conversations by `metadata.session`"),
    taken("n", "answers, 1 to 16, each drawn by itself", parameters.several, "n"),
)  # fmt: skip

CHAT: Final = _by_name((
    taken("messages", "texts, calls of tools, and what tools answered", messages, "chat.messages"),
    *_COMMON,
    taken("max_completion_tokens", "the same as `max_tokens`", parameters.new_tokens, "sampling.max_new_tokens"),
    taken("logprobs", "of the answer's tokens; the prompt's are had by gRPC alone", formats.logprobs, "logprobs"),
    taken("top_logprobs", "0 to 20; asks for `logprobs`, too", formats.top_logprobs, "logprobs.top"),
    taken("tools", "functions, 128 at most; each is scanned for risk as messages are", tools.tools, "tools"),
    taken("tool_choice", "`auto`, `none`, `required`, or a function", tools.tool_choice, "tool_choice"),
    taken("parallel_tool_calls", "`false`: the first call is told, others that the model makes are left out",
          tools.parallel_tool_calls),
    refused("functions", _TOOLS, []),
    refused("function_call", _TOOLS, "none", "auto"),
    taken("response_format", f"`text`, `json_object`, or `json_schema`, which is always strict (`pattern` {_ALLOWED});"
          " beside `tools` with `tool_choice: none` alone, for it leaves no room for calls",
          formats.response_format, "sampling.response_format"),
    taken("reasoning_effort", "a word that the model's template knows", formats.reasoning_effort, "reasoning_effort"),
    taken("chat_template_kwargs", f"variables of the model's template; {_OURS}", formats.template_kwargs,
          "chat_template_kwargs"),
    refused("verbosity", "say it in the prompt", "medium"),
    refused("modalities", "answers are text", ["text"]),
    refused("audio", "no model here hears or speaks"),
    refused("web_search_options", "nothing is searched"),
    refused("store", "nothing is stored", False),
    ignored("prediction", "changes how fast an answer comes, not what it is"),
    ignored("prompt_cache_key", "workers are picked by the prompt's own prefix"),
    ignored("prompt_cache_retention", "a worker's cache keeps what it has room for"),
    ignored("safety_identifier", "nobody is told of a caller's users"),
    ignored("service_tier", "a request's place is its `priority`, its attention is policy's"),
))  # fmt: skip

COMPLETION: Final = _by_name((
    taken("prompt", "a text, or token ids; of an array of prompts, the only one", prompt),
    *_COMMON,
    refused("best_of", "every answer is given; send `n`", 1),
    refused("echo", "the answer is what is new", False),
    taken("logprobs", "alternatives told of each token, 0 to 20", formats.top_logprobs, "logprobs.top"),
    refused("suffix", "nothing is inserted", ""),
))  # fmt: skip
