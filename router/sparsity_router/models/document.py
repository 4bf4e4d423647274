"""The file of `--models`: which models a router fronts, and where the workers of each are."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from sparsity_policies.decisions.model_bands import Bands
from sparsity_policies.documents.document import parse_bands
from sparsity_policies.model import Risk
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_serving.access.options_file import read_options_file
from sparsity_serving.bounds import MAX_NAME

_OPTION: Final = "--models"
_FILES: Final = ("tokenizer.json", "config.json")
# What is of high risk is for policies alone to say, which are edited and audited.
_BANDED: Final = {risk.name.lower(): risk for risk in (Risk.LOW, Risk.ELEVATED)}


@dataclass(frozen=True, slots=True)
class Fronted:
    """A model as an operator writes it down.

    Attributes:
        name: that callers ask for it by.
        folder: with its tokenizer.json and config.json.
        workers: where its workers are, see :mod:`sparsity_router.fleet.discovery`.
        aliases: other names for it.
        bands: its own length bands by risk, in the place of the band set's.
    """

    name: str
    folder: Path
    workers: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    bands: Bands = field(default_factory=dict)

    @property
    def known_as(self) -> frozenset[str]:
        """Names that its workers may tell of it: one of these, or the last part of one, or their folder's."""
        names = (self.name, *self.aliases)
        return frozenset({*names, *(PurePath(name).name for name in names), self.folder.name})


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        ConfigurationError: naming the file, when it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{_OPTION}: {path}: cannot be read: {error}") from error


def read_models(path: Path, digest: str | None = None) -> tuple[Fronted, ...]:
    """Reads a file, which must have the ``digest`` where one is given.

    Raises:
        ConfigurationError: naming the file and the entry.
    """
    if digest is not None and digest_of(path) != digest:
        raise ConfigurationError(f"{_OPTION}: {path}: was changed since this router was started; start it anew")
    document = read_options_file(_OPTION, path)
    entries = document.get("models") if isinstance(document, dict) and document.keys() == {"models"} else None
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(f"{_OPTION}: {path}: must have a list `models`, and no other field")
    found = tuple(_entry(entry, path, f"{_OPTION}: {path}: models[{place}]") for place, entry in enumerate(entries))
    _once((name for one in found for name in (one.name, *one.aliases)), f"{_OPTION}: {path}: the name")
    _once((place for one in found for place in one.workers), f"{_OPTION}: {path}: the worker")
    for name, times in Counter(name for one in found for name in one.known_as).items():
        if times > 1:
            problem = f"is how workers of {times} models may call theirs; name these, or their folders, apart"
            raise ConfigurationError(f"{_OPTION}: {path}: {name!r} {problem}")
    return found


def single(folder: Path, workers: tuple[str, ...], names: tuple[str, ...]) -> Fronted:
    """The one model that options name: by its folder's name, or by ``names``, of which the first is its own.

    Raises:
        ConfigurationError: for a name that is none, or that is there twice.
    """
    option = "--served-model-name"
    first, *aliases = [_text(name, option) for name in names] or [folder.absolute().name]
    _once(names, option)
    return Fronted(first, folder, workers, tuple(aliases))


def check_folder(folder: Path, where: str) -> None:
    """Refuses a folder without the files of a model.

    Raises:
        ConfigurationError: naming ``where`` it was given, and the file.
    """
    for name in _FILES:
        if not (folder / name).is_file():
            raise ConfigurationError(
                f"{where}: {folder} has no {name}; give the folder of the model that the workers serve"
            )


def _entry(entry: Any, path: Path, where: str) -> Fronted:
    known = [each.name for each in dataclasses.fields(Fronted)]
    if not isinstance(entry, dict) or not entry.keys() <= set(known):
        raise ConfigurationError(f"{where}: must be a mapping with fields of {', '.join(known)}")
    for needed in ("name", "folder", "workers"):
        if needed not in entry:
            raise ConfigurationError(f"{where}: {needed}: is missing")
    name, folder = (_text(entry[needed], f"{where}: {needed}") for needed in ("name", "folder"))
    workers, aliases = (_texts(entry.get(several, []), f"{where}: {several}") for several in ("workers", "aliases"))
    if not workers:
        raise ConfigurationError(f"{where}: workers: give the address of at least one")
    bands = _bands(entry.get("bands", {}), f"{where}: bands")
    found = Fronted(name, path.parent / folder, workers, aliases, bands)
    check_folder(found.folder, f"{where}: folder")
    return found


def _bands(value: Any, where: str) -> Bands:
    if not isinstance(value, dict) or not value.keys() <= _BANDED.keys():
        raise ConfigurationError(f"{where}: must be a mapping of {', '.join(_BANDED)} to length bands")
    found = {}
    for word, bands in value.items():
        try:
            found[_BANDED[word]] = parse_bands(_BANDED[word], bands)
        except InvalidRequestError as error:
            raise ConfigurationError(f"{where}: {word}: {error}") from error
    return found


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where}: must be a list, not {value!r}")
    return tuple(_text(one, where) for one in value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise ConfigurationError(f"{where}: must be text of 1 to {MAX_NAME} printable characters, not {value!r}")
    return value


def _once(given: Iterable[str], what: str) -> None:
    for value, times in Counter(given).items():
        if times > 1:
            raise ConfigurationError(f"{what} {value!r} stands {times} times; it must stand once")
