"""How much of its prompts a mixed load finds in the prefix cache of its own tier, and how much in a denser one's.

A simulation: requests are decided by the shipped policies, and what a worker's cache holds is counted in pages by
caller, tier and text. What a request would copy from a denser tier it computes without copies: either way its own tier
holds the prompt afterwards, so one run tells both.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Signals, StoredPolicy, Tier
from sparsity_serving.benchmark import Row

PAGE: Final = 64
CACHE_TOKENS: Final = 440_000
# Fewer are computed as soon as copied.
_FEWEST_PAGES: Final = 4
_CONTEXT: Final = 128_000
_SECONDS_BETWEEN_STARTS: Final = 20.0
ASSUMPTIONS: Final[Mapping[str, str]] = {
    "load": f"a session starts every {_SECONDS_BETWEEN_STARTS:g} s at random; 50 % chats, 25 % documents, 15 % agents,"
    " 10 % medical chats; 8 callers, whose prefixes are apart; one worker of every tier, policies as shipped",
    "chat": "1,000 tokens of instructions, 2 to 40 turns of 150 to 900 tokens a minute apart,"
    " one in seven brings 2,000 to 8,000 more; answers of 50 to 500",
    "document": "4,000 to 100,000 tokens (log-uniform), asked 1 to 6 times half a minute apart, each time alone with a"
    " question of 30 to 300 tokens, or, one document in three, with all questions and answers before",
    "agent": "3,000 tokens of tools, 5 to 60 steps of 300 to 3,000 tokens 15 s apart, a fifth of them with task search",
    "pages": f"of {PAGE} tokens; a denser tier is taken where it holds {_FEWEST_PAGES} more or beyond",
}


class Asked(NamedTuple):
    """One request of a session.

    Attributes:
        kind: of session.
        domain: declared.
        task: declared.
        text: what its prompt is a prefix of; requests of one text share what they have in common.
        tokens: of its prompt.
        answer: tokens that are generated.
        common: tokens of prompt and answer that the text's next prompt begins with.
        session: whether it names a session, and so is held as dense as its riskiest request.
    """

    kind: str
    domain: str
    task: str
    text: int
    tokens: int
    answer: int
    common: int
    session: bool


class Cache:
    """What a worker's prefix cache holds, whole pages by caller, tier and text; the least recently used end first.

    Args:
        tokens: that fit; infinite where nothing is ever dropped.
    """

    def __init__(self, tokens: float) -> None:
        self._most = tokens / PAGE
        self._held: OrderedDict[tuple[int, Tier, int], int] = OrderedDict()
        self._pages = 0

    def pages(self, caller: int, tier: Tier, text: int) -> int:
        """Pages of a text from its beginning that a tier holds for a caller."""
        return self._held.get((caller, tier, text), 0)

    def keep(self, caller: int, tier: Tier, text: int, pages: int) -> None:
        """Takes up a text that was computed at a tier; drops the ends of others where it does not fit."""
        key = caller, tier, text
        before = self._held.get(key, 0)
        self._held[key] = max(before, pages)
        self._held.move_to_end(key)
        self._pages += self._held[key] - before
        while self._pages > self._most and len(self._held) > 1:
            oldest, held = next(iter(self._held.items()))
            dropped = min(held, math.ceil(self._pages - self._most))
            self._pages -= dropped
            if dropped < held:
                self._held[oldest] = held - dropped
            else:
                del self._held[oldest]


@dataclass(slots=True)
class Count:
    """Prompt tokens of one kind of session."""

    tokens: int = 0
    own: int = 0
    denser: int = 0


@dataclass(slots=True)
class Found:
    """What one run counted.

    Attributes:
        tiers: requests by tier.
        kinds: prompt tokens of sparse requests by kind of session.
        all: prompt tokens of all requests.
    """

    tiers: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))
    kinds: dict[str, Count] = field(default_factory=dict)
    all: Count = field(default_factory=Count)


def measure(requests: int, say: Callable[[str], None], seed: int = 0) -> list[Row]:
    """Rows of the load with conversations held at their risk, as routers do by default, and moving freely."""
    snapshot = Snapshot.build(1, [StoredPolicy(each, "", 1, 0.0, "", "") for each in shipped_policies("standard")])
    rows = []
    for kept, capacity in itertools.product((True, False), (CACHE_TOKENS, math.inf)):
        sessions = "--sessions keep" if kept else "--sessions freely"
        room = f"{capacity:,} tokens of cache" if capacity < math.inf else "a cache without end"
        say(f"{sessions}, {room} ...")
        rows += _rows(simulate(snapshot, requests, capacity, kept=kept, seed=seed), f"{sessions}, {room}")
    return rows


def simulate(snapshot: Snapshot, requests: int, capacity: float, *, kept: bool, seed: int = 0) -> Found:
    """Runs so many requests through policies and cache.

    Args:
        snapshot: the policies.
        requests: in all.
        capacity: of the cache, tokens.
        kept: whether a session is held as dense as its riskiest request.
        seed: of the load.
    """
    found, cache = Found(), Cache(capacity)
    sessions: dict[int, Tier] = {}
    for caller, asked in itertools.islice(_load(random.Random(seed)), requests):
        signals = Signals(
            asked.tokens, asked.tokens, domain=asked.domain, task=asked.task,
            session_tier=sessions.get(asked.text) if kept and asked.session else None,
        )  # fmt: skip
        decision = decide(signals, snapshot)
        if decision.lasting is not None:
            sessions[asked.text] = min(decision.lasting, sessions.get(asked.text, decision.lasting))
        tier, usable = decision.tier, (asked.tokens - 1) // PAGE
        own = min(cache.pages(caller, tier, asked.text), usable)
        held = max((cache.pages(caller, each, asked.text) for each in Tier if each < tier), default=0)
        more = min(held, usable) - own
        more = more if more >= _FEWEST_PAGES else 0
        for count in [found.all] if tier is Tier.DENSE else [found.all, found.kinds.setdefault(asked.kind, Count())]:
            count.tokens += asked.tokens
            count.own += own * PAGE
            count.denser += more * PAGE
        found.tiers[tier] += 1
        cache.keep(caller, tier, asked.text, asked.common // PAGE)
    return found


def _load(draw: random.Random) -> Iterator[tuple[int, Asked]]:
    """Requests with their caller, in the order in which they come."""
    texts, starts = itertools.count(), 0.0
    waiting: list[tuple[float, int, int, float, Iterator[Asked]]] = []
    while True:
        while not waiting or starts <= waiting[0][0]:
            text = next(texts)
            kind, pause = draw.choices(
                [(_chat, 60.0), (_document, 30.0), (_agent, 15.0), (_medical, 60.0)], [50, 25, 15, 10]
            )[0]
            heapq.heappush(waiting, (starts, text, draw.randrange(8), pause, kind(text, draw)))
            starts += draw.expovariate(1 / _SECONDS_BETWEEN_STARTS)
        at, text, caller, pause, session = heapq.heappop(waiting)
        asked = next(session, None)
        if asked is not None and asked.tokens + asked.answer <= _CONTEXT:
            yield caller, asked
            heapq.heappush(waiting, (at + draw.expovariate(1 / pause), text, caller, pause, session))


def _chat(text: int, draw: random.Random, kind: str = "chats", domain: str = "support-chat") -> Iterator[Asked]:
    tokens = 1000
    for _ in range(draw.randint(2, 40)):
        tokens += draw.randint(150, 900) + (draw.randint(2000, 8000) if draw.random() < 1 / 7 else 0)
        answer = draw.randint(50, 500)
        yield Asked(kind, domain, "", text, tokens, answer, tokens + answer, True)
        tokens += answer


def _medical(text: int, draw: random.Random) -> Iterator[Asked]:
    return _chat(text, draw, "medical chats", "medical")


def _document(text: int, draw: random.Random) -> Iterator[Asked]:
    tokens = round(math.exp(draw.uniform(math.log(4000), math.log(100_000))))
    domain, goes_on = draw.choice(("rag", "summarization")), draw.random() < 1 / 3
    for _ in range(draw.randint(1, 6)):
        question, answer = draw.randint(30, 300), draw.randint(50, 500)
        common = tokens + question + answer if goes_on else tokens
        yield Asked("documents", domain, "", text, tokens + question, answer, common, goes_on)
        tokens = common


def _agent(text: int, draw: random.Random) -> Iterator[Asked]:
    tokens = 3000
    for _ in range(draw.randint(5, 60)):
        tokens += draw.randint(300, 3000)
        answer, task = draw.randint(50, 500), "search" if draw.random() < 1 / 5 else ""
        yield Asked("agents", "code", task, text, tokens, answer, tokens + answer, True)
        tokens += answer


def _rows(found: Found, where: str) -> list[Row]:
    requests = ", ".join(f"{count} {tier.word}" for tier, count in found.tiers.items())
    computed = found.all.tokens - found.all.own
    rows = [
        _row("prompt tokens that only a denser tier holds", f"{where}; {requests} requests", found.all),
        Row("the same, of prompt tokens that are computed", where, _percent(found.all.denser, computed), "%"),
    ]
    for kind, count in sorted(found.kinds.items()):
        shape = f"{where}; sparse requests, {count.tokens / 1e6:.1f} million prompt tokens"
        rows.append(_row(f"prompt tokens that only a denser tier holds, {kind}", shape, count))
    return rows


def _row(name: str, shape: str, count: Count) -> Row:
    own = _percent(count.own, count.tokens)
    return Row(name, shape, _percent(count.denser, count.tokens), "%", "in their own tier's cache", own)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
