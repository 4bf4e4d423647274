"""Which of the ready workers takes a request: where its prefix lies, how busy they are, how full their caches are.

Two workers at random, and the one that is most likely to hold the prompt's prefix, are scored, and the best is taken;
of those that serve dense requests, too, and of those that do not, two each: where both have room, dense room is kept.
Two at random in the place of the least busy of all keeps routers that see the same load from all choosing the same
worker (Mitzenmacher, IEEE TPDS 2001); prefix blocks are hashed as a chain, as the engines' prefix caches do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from cachetools import LRUCache
from sparsity_policies.model import Tier

from sparsity_router.fleet.workers import Worker

Scorer = Callable[[Worker], float]
_BLOCK_BYTES = 2048
# The first 256 KB tell prompts apart well enough.
_MOST_BLOCKS = 128
_HELD = 200_000
_HALF_BUSY_TOKENS = 8192.0


@dataclass(frozen=True, slots=True)
class Want:
    """What picking looks at of a request.

    Attributes:
        prompt: the prompt's bytes, as text or as token ids.
        salt: prefixes are shared within it only.
        session: the conversation, whose turns share their beginning; empty for none.
    """

    prompt: bytes = b""
    salt: str = ""
    session: str = ""


def blocks(want: Want, tier: Tier) -> list[bytes]:
    """Chained digests of the prompt's whole blocks: equal ones mean equal prefixes, of which tiers share none."""
    digest = _salt(want, tier)
    found = []
    for start in range(0, min(len(want.prompt) - _BLOCK_BYTES + 1, _MOST_BLOCKS * _BLOCK_BYTES), _BLOCK_BYTES):
        digest = blake2b(digest + want.prompt[start : start + _BLOCK_BYTES], digest_size=8).digest()
        found.append(digest)
    return found


def _salt(want: Want, tier: Tier) -> bytes:
    return bytes([tier]) + want.salt.encode()


class PrefixIndex:
    """The worker that each prefix was last sent to, bounded."""

    def __init__(self, held: int = _HELD) -> None:
        self._targets: LRUCache[bytes, str] = LRUCache(held)

    def __len__(self) -> int:
        return len(self._targets)

    def shares(self, keys: Sequence[bytes]) -> dict[str, float]:
        """The share of the leading blocks that each worker was sent before, by target."""
        found: dict[str, float] = {}
        for number, key in enumerate(keys):
            target = self._targets.get(key)
            if target is None:
                break
            found[target] = (number + 1) / len(keys)
        return found

    def sent(self, keys: Sequence[bytes], target: str) -> None:
        """Takes note of where a prompt went."""
        for key in keys:
            self._targets[key] = target


def idleness(worker: Worker) -> float:
    """1 when idle, 0.5 with 8k tokens to work on; less for a new worker, which every router finds idle."""
    return worker.warmth * _HALF_BUSY_TOKENS / (_HALF_BUSY_TOKENS + worker.outstanding_tokens)


def free_cache(worker: Worker) -> float:
    """1 for an empty KV cache, 0 for a full one."""
    return 1.0 - worker.kv_use


def dense_room(worker: Worker) -> float:
    """1 where no dense request can miss the room that a sparser one takes."""
    return float(not worker.serves_dense)


class Picker:
    """The best of a few candidates by weighted scores.

    Args:
        scorers: pairs of weight and scorer, beside the share of the prefix, whose weight is 1.
    """

    def __init__(
        self, scorers: Sequence[tuple[float, Scorer]] = ((1.0, idleness), (0.25, free_cache), (0.5, dense_room))
    ) -> None:
        self._scorers = tuple(scorers)
        self._index = PrefixIndex()

    def pick(self, ready: Sequence[Worker], tier: Tier, want: Want | None = None) -> Worker | None:
        """One of ``ready`` for a request of ``tier``, remembered as the prompt's holder; None when there is none."""
        if len(ready) < 2:
            return ready[0] if ready else None
        keys = [b"session" + _salt(want, tier) + want.session.encode()] if want and want.session else []
        keys = [*keys, *blocks(want, tier)] if want else keys
        # Without a session the first key is a block; with one, a conversation counts as a prefix of its own.
        shares = self._index.shares(keys)
        candidates = []
        for serves_dense in (False, True):
            alike = [worker for worker in ready if worker.serves_dense is serves_dense]
            candidates += random.sample(alike, min(len(alike), 2))
        candidates += [worker for worker in ready if worker.target in shares and worker not in candidates]

        def rank(worker: Worker) -> tuple[float, str]:
            own = sum(weight * scorer(worker) for weight, scorer in self._scorers)
            return -own - shares.get(worker.target, 0.0), worker.name

        chosen = min(candidates, key=rank)
        self._index.sent(keys, chosen.target)
        return chosen
