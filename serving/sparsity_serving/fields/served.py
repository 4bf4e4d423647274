"""The model that a server serves, as requests are checked against it."""

from __future__ import annotations

import reprlib
from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError

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

    def check_asked(self, request: inference_pb2.GenerateRequest) -> None:
        """Refuses a request for another model.

        Raises:
            InvalidRequestError: naming the field, and the model that there is.
        """
        if request.HasField("model") and request.model != self.name:
            raise InvalidRequestError.of("model", f"{reprlib.repr(request.model)} is not served here; {self.name} is")
