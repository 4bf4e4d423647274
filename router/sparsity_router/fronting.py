"""Opens the models that a router fronts: their files, and the fleets of their workers."""

from __future__ import annotations

from typing import Final

from sparsity_policies.decisions.costs import ModelShape
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.access.lease_keys import LeaseKeys

from sparsity_router.config import RouterConfig
from sparsity_router.fleet.fleet import Admission, Fleet
from sparsity_router.fleet.stock.model import StockModel
from sparsity_router.models.document import Fronted
from sparsity_router.models.models import Model, Models
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.opinion.asking import SecondOpinion
from sparsity_router.prompts.semantic import Detector
from sparsity_router.prompts.tokens import ModelTokenizer

# Of an entry of the file, by the option that says the same of a single model.
_FIELDS: Final = {"--model": "folder", "--worker": "workers"}


def open_models(
    config: RouterConfig, lease_keys: LeaseKeys | None, detector: Detector | None, second: SecondOpinion | None
) -> Models:
    """The models that options name, with workers that nobody watches yet.

    Raises:
        ConfigurationError: naming the option, and of several models the model, that cannot be used.
    """

    def opened(one: Fronted) -> Model:
        try:
            return _open(one, config, lease_keys, detector, second)
        except ConfigurationError as error:
            if config.models is None:
                raise
            option, _, rest = str(error).partition(": ")
            problem = f"{_FIELDS[option]}: {rest}" if option in _FIELDS else str(error)
            raise ConfigurationError(f"--models: {one.name}: {problem}") from error

    return Models(*map(opened, config.fronted()))


def _open(
    one: Fronted,
    config: RouterConfig,
    lease_keys: LeaseKeys | None,
    detector: Detector | None,
    second: SecondOpinion | None,
) -> Model:
    """One model; workers that tell another's name are not its own."""
    tokenizer = ModelTokenizer(one.folder, one.name)
    template = tokenizer.template.source if tokenizer.template else ""
    fleet = Fleet(
        one.workers,
        tokenizer.digest,
        config.worker_timeout,
        lease_keys,
        Admission(
            config.queue_seconds, config.queue_limit, config.dense_reserve, config.hedge_seconds, config.patience
        ),
        config.worker_tls,
        config.engine,
        StockModel.of(tokenizer.tokenizer, tokenizer.served, tokenizer.digest, tokenizer.config, template),
        one.known_as,
    )
    doubts = config.detect == "declared"
    classifier = Classifier(tokenizer, config.max_prompt_bytes, detector, doubts_declared=doubts, second=second)
    return Model(classifier, fleet, one.aliases, ModelShape.of(tokenizer.config))
