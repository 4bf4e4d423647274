"""The model that a server serves, as requests are checked against it."""

from __future__ import annotations

from typing import NamedTuple

from sparsity_serving.fields.defaults import Defaults


class Served(NamedTuple):
    """A served model.

    Attributes:
        name: that callers may ask for.
        context_length: prompt and answer, tokens.
        vocabulary_size: token ids lie below it.
        defaults: how it is sampled where a caller does not say.
    """

    name: str
    context_length: int
    vocabulary_size: int
    defaults: Defaults = Defaults()
