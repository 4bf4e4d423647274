"""What is known of a request once it was read and scanned, and what that becomes under other policies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from opentelemetry import metrics
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.matching.scan import ScanResult
from sparsity_policies.model import Signals, Tier
from sparsity_serving.metrics.metering import CLASSIFY_SECONDS, histogram

from sparsity_router.prompts.domains import Score, resolve
from sparsity_router.prompts.lengths import Interval

_NOTHING = ScanResult(frozenset(), frozenset(), 0)
_meter = metrics.get_meter("sparsity.router")
_scanning = histogram(_meter, "sparsity.router.scan.duration", "s", "Scan of one prompt.", CLASSIFY_SECONDS)


class Prompt(NamedTuple):
    """A prompt as a worker takes it: in token ids, or as text where they were not needed to decide.

    Attributes:
        interval: tokens, at least and at most.
        ids: token ids; empty where they were not counted.
        text: what is to be tokenized.
        special: whether the model puts something around it.
    """

    interval: Interval
    ids: list[int]
    text: str = ""
    special: bool = False


class Opened(NamedTuple):
    """A prompt and the scan of it.

    Attributes:
        prompt: for the worker.
        size: bytes that are tokenized.
        text: what its caller wrote.
        written: bytes of that, before anybody scanned it.
        scan: of the text.
        problem: what kept the scan from an answer.
    """

    prompt: Prompt
    size: int
    text: str
    written: int
    scan: ScanResult = _NOTHING
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is known of a request but for its length, by the policies of one snapshot.

    Attributes:
        opened: the prompt and its scan.
        context: what came with it.
        known: signals that the prompt says nothing about.
        scores: of the semantic classifier.
        problem: what kept that from an answer.
        snapshot: whose policies they are.
    """

    opened: Opened
    context: inference_pb2.RequestContext
    known: Mapping[str, Any]
    scores: Mapping[str, Score]
    problem: str
    snapshot: Snapshot

    def __call__(self, *, min_tokens: int, max_tokens: int) -> Signals:
        """The signals of the request with a length."""
        context, scan = self.context, self.opened.scan
        found = resolve(context.domain, scan.domains, self.scores, self.snapshot)
        return Signals(
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            domain=found.domain,
            declared=found.declared,
            detected=found.detected,
            confidence=found.confidence,
            flags=scan.flags.union(context.flags),
            task=context.task,
            labels=tuple(sorted(context.labels.items())),
            tenant=context.tenant,
            session=context.session,
            max_tier=Tier(context.max_tier) if context.max_tier else None,
            scanned_bytes=scan.scanned_bytes,
            prompt_bytes=self.opened.written,
            # Of who was asked and gave no answer, nobody knows what it would have been.
            classifier_error=self.opened.problem or self.problem,
            **self.known,
        )

    def under(self, snapshot: Snapshot) -> Settled:
        """The same by the policies of ``snapshot``."""
        if snapshot.scanner is self.snapshot.scanner:
            return self
        return replace(self, opened=scanned(self.opened, snapshot), snapshot=snapshot)


class Classified(NamedTuple):
    """A request, understood.

    Attributes:
        signals: what policy decides from.
        prompt: for the worker.
        settled: what the signals were made of.
    """

    signals: Signals
    prompt: Prompt
    settled: Settled

    def under(self, snapshot: Snapshot) -> Signals:
        """The signals by another snapshot, whose detection the prompt is scanned for where it is not the same."""
        settled = self.settled.under(snapshot)
        if settled is self.settled:
            return self.signals
        return settled(min_tokens=self.signals.min_tokens, max_tokens=self.signals.max_tokens)

    def in_doubt(self, problem: str) -> Classified:
        """The same request, of which something cannot be known; an empty ``problem`` leaves it as it is."""
        if not problem:
            return self
        settled = replace(self.settled, problem=self.settled.problem or problem)
        signals = replace(self.signals, classifier_error=self.signals.classifier_error or problem)
        return self._replace(settled=settled, signals=signals)


def scanned(opened: Opened, snapshot: Snapshot, data: bytes = b"") -> Opened:
    """A prompt scanned for the detection of ``snapshot``; ``data`` is its text in UTF-8, where that is at hand."""
    started = time.monotonic()
    try:
        scan = snapshot.scanner.scan(data or opened.text)
        _scanning.record(time.monotonic() - started)
        return opened._replace(scan=scan, problem="")
    except ValueError as error:
        return opened._replace(scan=_NOTHING, problem=str(error))
