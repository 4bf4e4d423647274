"""Turns a request into signals and the prompt that a worker takes: open, scan, detect, resolve, measure."""

from __future__ import annotations

import time
from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.matching.locating import Match
from sparsity_policies.model import Signals
from sparsity_policies.risk.model import Scores
from sparsity_policies.risk.opinion import Opinions, opined
from sparsity_serving.background.off_loop import OnLoop, off_loop
from sparsity_serving.metrics.metering import CLASSIFY_SECONDS, histogram, meter_of

from sparsity_router.prompts.domains import UNASKED, Asking, Detection, acts, read_risk
from sparsity_router.prompts.lengths import Interval
from sparsity_router.prompts.measure import EncodedPrompt, Measure
from sparsity_router.prompts.opened import Scanned, located, open_prompt, scan
from sparsity_router.prompts.opinion.asking import NoOpinionError, SecondOpinion
from sparsity_router.prompts.prompt import Bounds, read_prompt
from sparsity_router.prompts.semantic import DetectionError, Detector
from sparsity_router.prompts.signals import Arrival, Resolved
from sparsity_router.prompts.tokens import ModelTokenizer

_NOW = Arrival()
_meter = meter_of("sparsity.router")
_detecting = histogram(
    _meter, "sparsity.router.detect.duration", "s", "Detection of one domain by meaning.", CLASSIFY_SECONDS
)
_reading = histogram(
    _meter, "sparsity.router.risk.duration", "s", "Every window of one prompt, by the linear model.", CLASSIFY_SECONDS
)
_second = histogram(
    _meter, "sparsity.router.opinion.duration", "s", "Second opinion on one prompt's likely parts.", CLASSIFY_SECONDS
)


class Classified(NamedTuple):
    """A request, understood.

    Attributes:
        resolved: what the signals were made of.
        prompt: for the worker.
        signals: what policy decides from.
    """

    resolved: Resolved
    prompt: EncodedPrompt
    signals: Signals

    def under(self, snapshot: Snapshot) -> Signals:
        """The signals by another snapshot."""
        return self.by(snapshot).signals

    def by(self, snapshot: Snapshot) -> Classified:
        """The same by another snapshot, by whose policies all of the text may have to be read again."""
        if snapshot is self.resolved.snapshot:
            return self
        resolved = self.resolved.under(snapshot)
        signals = resolved.signals(Interval(self.signals.min_tokens, self.signals.max_tokens))
        return self._replace(resolved=resolved, signals=signals)

    def is_quick(self, snapshot: Snapshot) -> bool:
        """Whether that takes too little time for a thread."""
        return self._effort(snapshot) <= OnLoop.TOKENIZER

    async def read_by(self, snapshot: Snapshot) -> Classified:
        """The same by another snapshot, beside the event loop where it takes long."""
        return await off_loop(OnLoop.TOKENIZER, self._effort(snapshot), self.by, snapshot)

    def _effort(self, snapshot: Snapshot) -> int:
        """What is read for another snapshot, in bytes that take as long as a tokenizer's."""
        scanned, told = self.resolved.to_read(snapshot)
        return max(scanned * OnLoop.TOKENIZER // OnLoop.SCAN, told)


class Classifier:
    """Finds out a prompt's domain and its length, as closely as the decision needs it, and scans all of it.

    Args:
        tokenizer: of the served model.
        max_prompt_bytes: a longer prompt is refused.
        detector: finds the domain of a prompt that declares none; None leaves it unknown.
        doubts_declared: whether the detector is asked about declared domains of less than high risk too.
        second: who is asked of parts that the linear model finds likely; None leaves its word as it is.

    Attributes:
        served: the model.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        max_prompt_bytes: int,
        detector: Detector | None = None,
        *,
        doubts_declared: bool = False,
        second: SecondOpinion | None = None,
    ) -> None:
        self.served = tokenizer.served
        self._tokenizer = tokenizer
        self._detector = detector
        self._second = second
        asking = Asking.DECLARED if doubts_declared else Asking.UNDECLARED
        self._asking = asking if detector else Asking.NONE
        self._measure = Measure(tokenizer)
        self._bounds = Bounds(tokenizer.vocabulary_size, tokenizer.context_length, max_prompt_bytes, tokenizer.control)

    async def classify(
        self,
        request: inference_pb2.GenerateRequest,
        snapshot: Snapshot,
        arrival: Arrival = _NOW,
        *,
        exact: bool = False,
    ) -> Classified:
        """Classifies one request.

        Args:
            request: as the caller sent it.
            snapshot: whose detection the prompt is scanned for.
            arrival: what is known of it beside what is in it.
            exact: whether to count the tokens even where the decision does not hang on them.

        Raises:
            InvalidRequestError: naming the field.
        """
        size, plain = request.ByteSize(), _is_plain(request)
        prompt = await off_loop(OnLoop.SCAN if plain else OnLoop.TOKENIZER, size, read_prompt, request, self._bounds)
        opening = OnLoop.SCAN if plain and not prompt.signs else OnLoop.TOKENIZER
        opened = await off_loop(opening, max(size, prompt.size), open_prompt, prompt, request, self._tokenizer)
        scanned = await off_loop(OnLoop.SCAN, sum(map(len, opened.readings)), scan, opened, snapshot)
        detection = await self._detect(scanned, request.context, snapshot)
        if self._is_read(request.context, snapshot):
            words = opened.words
            opinions: Opinions | None = None if self._second is None else {}
            size = max(prompt.size, len(words))
            arguments = words, request.context.domain, snapshot, opinions
            detection = detection._replace(risk=await off_loop(OnLoop.TOKENIZER, size, _read, *arguments))
            detection = await self._opined(detection, request.context, snapshot)
        resolved = Resolved.of(scanned, detection, request.context, arrival, snapshot, self._asking)
        measured = self._measure.by_size(resolved, exact=exact)
        if measured is None:
            measured = await off_loop(OnLoop.TOKENIZER, opened.size, self._measure.by_text, resolved, exact=exact)
        return Classified(resolved, *measured)

    @staticmethod
    def _is_read(context: inference_pb2.RequestContext, snapshot: Snapshot) -> bool:
        """Whether what the text is like could make a difference: a flagged request is dense anyhow."""
        return not context.flags and bool(snapshot.risk.policies)

    async def locate(self, request: inference_pb2.GenerateRequest, snapshot: Snapshot) -> list[Match]:
        """Where in a request's text the scan finds something."""
        return await off_loop(OnLoop.TOKENIZER, request.ByteSize(), located, request, snapshot, self._tokenizer)

    async def _detect(self, scanned: Scanned, context: inference_pb2.RequestContext, snapshot: Snapshot) -> Detection:
        """What the semantic classifier makes of a prompt whose domain it could change."""
        is_asked = self._asking.is_about(context.domain, scanned.result.domains, snapshot)
        if self._detector is None or context.flags or not is_asked:
            return UNASKED
        started = time.monotonic()
        try:
            scores = await self._detector.detect(scanned.opened.words, snapshot)
            detection = Detection(scores, exemplars=snapshot.exemplars_hash)
        except DetectionError as error:
            detection = Detection({}, str(error))
        _detecting.record(time.monotonic() - started)
        return detection

    async def _opined(
        self, detection: Detection, context: inference_pb2.RequestContext, snapshot: Snapshot
    ) -> Detection:
        """The detection with a second opinion on what the linear model finds likely; none in time is a doubt."""
        if self._second is None or not detection.risk.likely:
            return detection
        started = time.monotonic()
        try:
            opinions = await self._second.read([part.text for part in detection.risk.likely])
            detection = detection._replace(risk=opined(detection.risk, opinions), opinions=opinions)
        except NoOpinionError as error:
            # What is only observed decides nothing, answered or not.
            if acts(context.domain, snapshot):
                detection = detection._replace(problem=detection.problem or str(error))
        _second.record(time.monotonic() - started)
        return detection


def _is_plain(request: inference_pb2.GenerateRequest) -> bool:
    """Whether there is nothing to read but a text: neither JSON nor token ids."""
    return request.WhichOneof("prompt") == "text" and not request.sampling.HasField("response_format")


def _read(text: str, declared: str, snapshot: Snapshot, opinions: Opinions | None) -> Scores:
    started = time.monotonic()
    scores = read_risk(text, declared, snapshot, opinions)
    _reading.record(time.monotonic() - started)
    return scores
