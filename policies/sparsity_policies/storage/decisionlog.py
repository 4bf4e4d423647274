"""The decision log, outcomes and audit events in Redis: capped streams, written in batches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsity_rpc.errors import InvalidRequestError, NotFoundError

from sparsity_policies.decisions.journal import Entry, Outcome
from sparsity_policies.documents.envelope import UNREADABLE, seconds_since
from sparsity_policies.model import Tier
from sparsity_policies.storage import scripts
from sparsity_policies.storage.connection import store_errors
from sparsity_policies.storage.scripts import AUDIT, DECISIONS, OUTCOMES

_PAGE = 1000
_JOIN_SECONDS = 3600
# Metrics of one decision.
_METRICS = 64


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One call of the policy API; ``time`` of the call in seconds since the epoch, by the policy source's clock."""

    actor: str
    peer: str
    method: str
    target: str
    reason: str
    status: str
    time: float = 0.0


class Replayed(NamedTuple):
    """One entry of the log; None where it cannot be read."""

    entry: Entry | None


class DecisionLog:
    """The streams behind one client. Every method raises StoreError when the server cannot be used.

    Args:
        client: of the server, as :class:`sparsity_policies.storage.store.PolicyStore` has it.
        kept: entries that each stream keeps, about.
    """

    def __init__(self, client: Any, kept: int = 100_000) -> None:
        self._redis = client
        self._kept = kept

    async def append(self, entries: Sequence[Entry], events: Sequence[AuditEvent] = ()) -> None:
        """Writes entries and audit events in one round trip."""
        with store_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for entry in entries:
                    self._add(pipe, DECISIONS, {"entry": entry.to_json()})
                    tier = entry.served_tier or entry.policy_tier
                    tenant = [entry.signals.tenant] if entry.signals.tenant else []
                    join = json.dumps([entry.policy, tier.value, entry.arm, *tenant])
                    pipe.set(scripts.decision(entry.decision_id), join, ex=_JOIN_SECONDS)
                for event in events:
                    fields = {name: getattr(event, name) for name in event.__slots__ if name != "time"}
                    # An event that waited for the store is written long after its call.
                    self._add(pipe, AUDIT, fields | ({"time": repr(event.time)} if event.time else {}))
                await pipe.execute()

    def _add(self, pipe: Any, stream: str, fields: dict[str, str]) -> None:
        pipe.xadd(stream, fields, maxlen=self._kept, approximate=True)

    async def replay(self, since: float) -> AsyncIterator[Replayed]:
        """Entries written in the last ``since`` seconds by the store's clock, oldest first."""
        with store_errors():
            seconds, _ = await self._redis.time()
        start = f"{max(int((seconds - since) * 1000), 0)}"
        while True:
            with store_errors():
                page = await self._redis.xrange(DECISIONS, start, "+", count=_PAGE)
            for name, fields in page:
                start = f"({name}"
                try:
                    yield Replayed(Entry.from_json(fields["entry"]))
                except (ValueError, KeyError):
                    yield Replayed(None)
            if len(page) < _PAGE:
                return

    async def report(
        self, decision_id: str, metric: str, score: float, labels: tuple[tuple[str, str], ...] = (), tenant: str = ""
    ) -> Outcome:
        """Joins an outcome to its decision and writes it, where it is the first of its metric.

        Args:
            decision_id: of the decision.
            metric: the measure.
            score: in [0, 1].
            labels: free.
            tenant: whose decisions alone are known to who reports; empty knows all.

        Raises:
            NotFoundError: when the decision is not in the log, or is another tenant's.
            InvalidRequestError: when it has outcomes of the most metrics.
        """
        with store_errors():
            join = await self._redis.get(scripts.decision(decision_id))
        unknown = f"decision {decision_id!r} is not in the decision log: it was not sampled, or is over an hour old"
        if join is None:
            raise NotFoundError(unknown)
        try:
            domain, tier, arm, *tenants = json.loads(join)
            outcome = Outcome(decision_id, str(domain), Tier(tier), str(arm), metric, score, labels)
        except UNREADABLE as error:
            problem = f"what the decision log has of decision {decision_id!r} cannot be read: {error}"
            raise NotFoundError(problem) from error
        if tenant and tenants != [tenant]:
            # In the same words: nobody learns which decisions others have.
            raise NotFoundError(unknown)
        fields = {
            "decision_id": decision_id,
            "domain": domain,
            "tier": tier,
            "arm": arm,
            "metric": metric,
            "score": repr(score),
            "labels": json.dumps(dict(labels)),
        }
        # In one step: who reports the same again and again, from wherever, counts once.
        keys, limits = (scripts.metrics(decision_id), OUTCOMES), (_METRICS, _JOIN_SECONDS, self._kept)
        flat = (part for field in fields.items() for part in field)
        with store_errors():
            written = await self._redis.eval(scripts.REPORT, len(keys), *keys, metric, *limits, *flat)
        if int(written) < 0:
            raise InvalidRequestError.of("metric", f"is one more than the {_METRICS} that a decision may have")
        return outcome

    async def outcomes(self, after: str, seconds: float) -> tuple[str, list[Outcome]]:
        """Outcomes after a place in the stream (`$` for its end), waiting for one, and the place to go on from."""
        with store_errors():
            if after == "$":
                newest = await self._redis.xrevrange(OUTCOMES, "+", "-", count=1)
                after = newest[0][0] if newest else "0-0"
            answer = await self._redis.xread({OUTCOMES: after}, count=_PAGE, block=max(int(seconds * 1000), 1))
        found = []
        for name, fields in _entries(answer):
            after = name
            try:
                tier, score = Tier(int(fields["tier"])), float(fields["score"])
                where = (fields["decision_id"], fields["domain"], tier, fields["arm"])
                if 0 <= score <= 1:
                    found.append(Outcome(*where, fields["metric"], score))
            except (ValueError, KeyError):
                continue
        return after, found

    async def audit(self, before: str = "", count: int = 100) -> tuple[list[AuditEvent], str]:
        """Audit events, newest first, and the place to go on ``before``; empty at the end."""
        with store_errors():
            page = await self._redis.xrevrange(AUDIT, f"({before}" if before else "+", "-", count=count)
        names = [name for name in AuditEvent.__slots__ if name != "time"]
        events = [
            AuditEvent(**{name: str(fields.get(name, "")) for name in names}, time=_time(place, fields))
            for place, fields in page
        ]
        return events, page[-1][0] if len(page) == count else ""


def _time(place: str, fields: dict[str, str]) -> float:
    """When a call was made; of an event without its time, when it was written."""
    try:
        return seconds_since(fields["time"])
    except UNREADABLE:
        return int(place.split("-")[0]) / 1000


def _entries(answer: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries of an XREAD of one stream, in either protocol's form."""
    if not answer:
        return []
    if isinstance(answer, dict):
        pages = next(iter(answer.values()))
        return [entry for page in pages for entry in page] if pages and isinstance(pages[0], list) else pages
    entries: list[tuple[str, dict[str, str]]] = answer[0][1]
    return entries
