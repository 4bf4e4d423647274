"""Readers of parameters: one value of JSON into one field of the contract."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_LABELS
from sparsity_serving.sampling import MAX_ANSWERS, MAX_STOPS, MAX_TOP_K

from sparsity_router.gateway.asking import Asked, Put

_MOST = 2**63 - 1
_MOST_32 = 2**31 - 1
# Labels, and room for what else is declared: how many labels there are is checked by their own name.
_MOST_PAIRS = 2 * MAX_LABELS


def text(value: Any, name: str) -> str:
    """A text.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not isinstance(value, str):
        raise InvalidRequestError.of(name, f"must be text, not {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError.no_text(name, error) from error
    return value


def whole(value: Any, name: str, most: int = _MOST_32, least: int = 0) -> int:
    """A whole number within bounds.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequestError.of(name, f"must be a whole number, not {kind(value)}")
    if not least <= value <= most:
        raise InvalidRequestError.of(name, f"must be in [{least}, {most}]")
    return value


def flag(value: Any, name: str) -> bool:
    """True or false.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not isinstance(value, bool):
        raise InvalidRequestError.of(name, f"must be true or false, not {kind(value)}")
    return value


def at_most(value: Collection[Any], most: int, name: str) -> None:
    """Refuses more of a thing than may be sent, before anybody goes through it.

    Raises:
        InvalidRequestError: naming the field.
    """
    if len(value) > most:
        raise InvalidRequestError.of(name, f"are {len(value)}; there may be {most}")


def only(value: dict[str, Any], known: Collection[str], name: str) -> None:
    """Refuses parts of an object that are not known. What is null was not sent.

    Raises:
        InvalidRequestError: naming the first by the alphabet.
    """
    if unknown := [part for part, held in value.items() if held is not None and part not in known]:
        raise InvalidRequestError.of(f"{name}.{min(unknown)}", "is not known here; leave it out")


def kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    kinds = {
        dict: "an object",
        list: "an array",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), "null")


def sampled(field: str) -> Put:
    """Reads a number into a field of the sampling parameters."""

    def put(asked: Asked, value: Any, name: str) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InvalidRequestError.of(name, f"must be a number, not {kind(value)}")
        # Far out of every field's range, and more than a float holds.
        setattr(asked.message.sampling, field, max(min(value, 1e30), -1e30))

    return put


def counted(field: str, most: int = _MOST_32) -> Put:
    """Reads a whole number into a field of the sampling parameters."""

    def put(asked: Asked, value: Any, name: str) -> None:
        setattr(asked.message.sampling, field, whole(value, name, most))

    return put


def top_k(asked: Asked, value: Any, name: str) -> None:
    """Reads how many candidates are kept; 0, as vLLM has it, and -1 keep all, whatever the model's default is."""
    number = whole(value, name, MAX_TOP_K, -1)
    asked.message.sampling.top_k = number if number > 0 else MAX_TOP_K


def seed(asked: Asked, value: Any, name: str) -> None:
    """Reads the sampler's seed."""
    asked.message.sampling.seed = whole(value, name, _MOST)


def new_tokens(asked: Asked, value: Any, name: str) -> None:
    """Reads the most tokens to generate, which OpenAI has two names for."""
    # Some languages write no number without a point.
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    number, sampling = whole(value, name), asked.message.sampling
    if sampling.HasField("max_new_tokens") and sampling.max_new_tokens != number:
        raise InvalidRequestError.of(name, f"says {number}, and its other name {sampling.max_new_tokens}: send one")
    sampling.max_new_tokens = number


def several(asked: Asked, value: Any, name: str) -> None:
    """Reads how many answers there are to be."""
    asked.message.n = whole(value, name, MAX_ANSWERS, 1)


def ignore_eos(asked: Asked, value: Any, name: str) -> None:
    """Reads whether to generate past the end-of-sequence token."""
    asked.message.sampling.ignore_eos = flag(value, name)


def priority(asked: Asked, value: Any, name: str) -> None:
    """Reads the place in the queue."""
    asked.message.priority = whole(value, name)


def stop(asked: Asked, value: Any, name: str) -> None:
    """Reads one text, or several, that end generation."""
    if not isinstance(value, list):
        asked.message.sampling.stop.append(text(value, name))
        return
    at_most(value, MAX_STOPS, name)
    for number, one in enumerate(value):
        asked.message.sampling.stop.append(text(one, f"{name}[{number}]"))


def model(asked: Asked, value: Any, name: str) -> None:
    """Reads the model's name."""
    asked.model = text(value, name)


def stream(asked: Asked, value: Any, name: str) -> None:
    """Reads whether the answer is streamed."""
    asked.stream = flag(value, name)


def stream_options(asked: Asked, value: Any, name: str) -> None:
    """Reads what a stream carries; `include_obfuscation` pads events, which these have no need of."""
    if not isinstance(value, dict):
        raise InvalidRequestError.of(name, f"must be an object, not {kind(value)}")
    only(value, {"include_usage", "include_obfuscation"}, name)
    asked.usage = flag(value.get("include_usage") or False, f"{name}.include_usage")


def metadata(asked: Asked, value: Any, name: str) -> None:
    """Reads pairs of texts; what they mean is read with the headers."""
    if not isinstance(value, dict):
        raise InvalidRequestError.of(name, f"must be an object, not {kind(value)}")
    at_most(value, _MOST_PAIRS, name)
    pairs = value.items()
    asked.metadata = {text(key, name): text(one, f"{name}.{key}") for key, one in pairs if one is not None}
