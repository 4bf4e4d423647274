"""The texts that a calibration reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError

from sparsity_quality.calibration.calibrate import Texts
from sparsity_quality.tasks import corpus


def built_in(encode: Callable[[str], list[int]], length: int) -> Texts:
    """The calibration split for everything that is learned or checked, the held-out one for the report."""
    prose, one, other = (_cut(encode(text), length) for text in corpus.documents("calibration"))
    held_out = [_cut(encode(text), length) for text in corpus.documents("held-out")]
    return Texts([prose, one], prose[: length // 2], [other], held_out)


def from_folder(folder: Path, encode: Callable[[str], list[int]], length: int) -> Texts:
    """A team's own text files: every third is held out, every third checked, the rest learned from.

    Raises:
        ConfigurationError: when there are fewer than three that are long enough.
    """
    long = [ids for path in sorted(folder.glob("*.txt")) if len(ids := encode(_text(path))) >= length]
    if len(long) < 3:
        raise ConfigurationError(
            f"--texts: {folder} has {len(long)} .txt files of {length} tokens or more, and 3 are needed"
        )
    texts = [_cut(ids, length) for ids in long]
    learned: Sequence[tuple[int, ...]] = texts[0::3]
    return Texts(learned, learned[0][: length // 2], texts[1::3], texts[2::3])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--texts: cannot read {path}: {error}") from error


def _cut(ids: list[int], length: int) -> tuple[int, ...]:
    if len(ids) < length:
        raise ConfigurationError(f"--length: the text at hand has {len(ids)} tokens, fewer than {length}")
    return tuple(ids[:length])
