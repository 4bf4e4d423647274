"""Where a folder's cells come from: on what, by what and of what they were measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.benchmark import versions_of
from sparsity_worker.model_files import digest

from sparsity_quality.subjects.contenders import Contender
from sparsity_quality.subjects.model import LocalModel
from sparsity_quality.tasks import corpus

_PACKAGES = ("torch", "triton", "transformers")


@dataclass(frozen=True, slots=True)
class Origin:
    """Of the cells of one digest.

    Attributes:
        contender: its name.
        attends: digest of how it attends.
        device: name of the processor or the GPU.
        dtype: of the model.
        model: name of its folder.
        weights: digest of its files.
        text: fingerprint of the text at hand.
        versions: of what computed.
    """

    contender: str
    attends: str
    device: str
    dtype: str
    model: str
    weights: str
    text: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, contender: Contender, model: LocalModel) -> Origin:
        """Of a contender on a model in this process."""
        return cls(
            contender.name, contender.digest, model.device_name, str(model.dtype).removeprefix("torch."),
            model.path.name, digest(model.path), corpus.fingerprint(), versions_of(_PACKAGES),
        )  # fmt: skip


class Origins:
    """The origins of a folder, by the digest of their cells.

    Raises:
        ConfigurationError: when the file that is there does not hold any.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "origins.json"
        self._known: dict[str, Origin] = {}
        if self._path.exists():
            try:
                given = json.loads(self._path.read_text(encoding="utf-8"))
                self._known = {key: Origin(**each) for key, each in given.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise ConfigurationError(f"{self._path}: tells no origins of cells; delete it") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __getitem__(self, digest: str) -> Origin:
        return self._known[digest]

    def note(self, found: Mapping[str, Origin]) -> None:
        """Adds origins by digest, and writes them down."""
        self._known |= found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(each) for key, each in self._known.items()}, indent=2) + "\n"
        self._path.write_text(text, encoding="utf-8")
