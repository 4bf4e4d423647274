"""The models that a router fronts: looked up once, where a request comes in."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.costs import ModelShape, Shapes
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.served import Served

from sparsity_router.fleet.fleet import Fleet
from sparsity_router.prompts.classify import Classifier


@dataclass(frozen=True, slots=True)
class Model:
    """One model, with all that it shares with no other.

    Attributes:
        classifier: which reads requests by its tokenizer and chat template.
        fleet: its workers, with their queues, breakers and prefixes.
        aliases: other names that it may be asked for by.
        shape: for what its attention costs; None where its config.json does not tell it.
    """

    classifier: Classifier
    fleet: Fleet
    aliases: tuple[str, ...] = ()
    shape: ModelShape | None = None

    @property
    def name(self) -> str:
        """The router's name for it, which answers, metrics and logs have."""
        return self.served.name

    @property
    def served(self) -> Served:
        """What requests are checked against."""
        return self.classifier.served


class Models:
    """All models of a router; requests that name none get the first."""

    def __init__(self, first: Model, *others: Model) -> None:
        self._all = (first, *others)
        self._by_name = {name: model for model in self._all for name in (model.name, *model.aliases)}

    def __iter__(self) -> Iterator[Model]:
        """The models, the first one first."""
        return iter(self._all)

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that may be asked for."""
        return tuple(self._by_name)

    @property
    def fleets(self) -> Mapping[str, Fleet]:
        """The workers by model."""
        return {model.name: model.fleet for model in self._all}

    @property
    def shapes(self) -> Shapes:
        """What attention costs by model."""
        return Shapes({model.name: model.shape for model in self._all})

    def named(self, name: str) -> Model | None:
        """The model of a name or an alias, the first one of no name; None for one that is not served."""
        return self._by_name.get(name) if name else self._all[0]

    def asked(self, request: inference_pb2.GenerateRequest) -> Model:
        """The model that a request asks for.

        Raises:
            InvalidRequestError: naming the field, and the models that there are.
        """
        if (found := self.named(request.model)) is None:
            raise InvalidRequestError.of("model", self.refusal(request.model))
        return found

    def refusal(self, name: str) -> str:
        """Why a name is refused."""
        there = ", ".join(model.name for model in self._all)
        return f"{reprlib.repr(name)} is not served here; {there} {'are' if len(self._all) > 1 else 'is'}"
