"""Long in-context classification: the context is nothing but examples."""

from __future__ import annotations

from random import Random

from sparsity_rpc.errors import ConfigurationError

from sparsity_quality.tasks.case import RESERVE, Case, Encode, Question

_CLASSES = {
    "billing": ("invoice", "refund", "credit card charge", "yearly discount", "payment receipt"),
    "network": ("wifi signal", "router", "vpn tunnel", "slow download", "dns lookup"),
    "printing": ("paper jam", "toner cartridge", "scanner glass", "colour page", "printer tray"),
    "travel": ("flight ticket", "hotel room", "rental car", "train seat", "visa form"),
}
_FRAMES = (
    "I have a question about the {} from {}.", "Who can help me with a {} since {}?",
    "There is a problem with the {} again, noticed on {}.", "Please look into the {} before {}.",
    "My colleague told me to write to you about the {} of {}.", "Could somebody check the {} by {}?",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "last week", "yesterday", "this morning")
# Labels say nothing of what they stand for, so that only the examples do.
_LABELS = ("red", "blue", "green", "black", "white", "brown")
_ASKED = 12


def labels(split: str, rng: Random, tokens: int, encode: Encode) -> Case:
    """Requests with labels that only the examples explain; no request that is asked for stands among the examples.

    Raises:
        ConfigurationError: when the examples do not fill so many tokens.
    """
    del split
    named = dict(zip(_CLASSES, rng.sample(_LABELS, len(_CLASSES)), strict=True))
    texts = [
        (frame.format(subject, day), named[kind])
        for kind, subjects in _CLASSES.items()
        for subject in subjects
        for frame in _FRAMES
        for day in _DAYS
    ]
    rng.shuffle(texts)
    asked, examples = texts[:_ASKED], texts[_ASKED:]
    context: list[int] = []
    for text, label in examples:
        if len(context) >= tokens - RESERVE:
            break
        context += encode(f"Request: {text}\nLabel: {label}\n\n")
    if len(context) < tokens - RESERVE:
        raise ConfigurationError(f"lengths: {tokens} tokens are more than the {len(examples)} examples fill")
    questions = tuple(
        Question("in-context classification", f"\n\nRequest: {text}\nLabel:", (label,), "contains", 4)
        for text, label in asked
    )
    return Case("labels", tuple(context[: tokens - RESERVE]), questions)
