"""The answer of a server of stock SGLang, which gives tokens alone: text and thoughts are made of them here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import EngineError, UnavailableError
from sparsity_serving.fields.tools import demanded
from sparsity_serving.tokens.detokenizer import IncrementalDetokenizer

from sparsity_router.fleet.stock.calls import Told, ToolCalls
from sparsity_router.fleet.stock.model import StockModel


class StockAnswer:
    """One answer, as it comes.

    Args:
        request: as workers take it.
        prompt: its token ids.
        model: that answers.

    Attributes:
        stopped: whether a stop text was reached: nothing more is taken.
    """

    def __init__(
        self, request: worker_pb2.WorkerServiceGenerateRequest, prompt: Sequence[int], model: StockModel
    ) -> None:
        self._model, self._top, self._prompt = model, request.logprobs.top, len(prompt)
        self._text = IncrementalDetokenizer(model.tokenizer, tuple(request.sampling.stop))
        self._calls = ToolCalls(request.chat) if request.chat.tools else None
        free = not request.sampling.HasField("response_format") and not demanded(request.chat.tool_choice)
        apart = request.HasField("chat") and free
        self._marks = model.marks if apart else None
        self._thinks = self._marks is not None and model.thinks(prompt)
        self._tokens = self._thoughts = self._cached = 0
        self._began, self._first = time.monotonic(), 0.0
        self.stopped = False

    def add(self, chunk: Any) -> inference_pb2.GenerateResponse:
        """What a GenerateStreamChunk of SGLang's contract adds.

        Raises:
            EngineError: where it is none of this prompt, or of this model.
        """
        self._check(chunk)
        ids = list(chunk.token_ids)
        self._first = self._first or time.monotonic() - self._began
        self._cached = chunk.cached_tokens
        response = inference_pb2.GenerateResponse(token_ids=ids)
        scores, prompt = chunk.output_logprobs, chunk.input_logprobs
        response.logprobs.extend(self._told(scores.token_ids, scores.token_logprobs, scores.top_logprobs))
        values = [each.value if each.HasField("value") else None for each in prompt.token_logprobs]
        response.prompt_logprobs.extend(self._told(prompt.token_ids, values, prompt.top_logprobs))
        for thinks, run in groupby(ids, self._of_a_thought):
            piece = self._text.push([token for token in run if token not in (self._marks or ())])
            self._add(response, piece.text, thinks=thinks)
            self.stopped = piece.stopped
            if self.stopped:
                break
        return response

    def end(self, complete: Any | None, worker: str, unreported: str) -> inference_pb2.GenerateResponse:
        """The last message, with what was held back.

        Args:
            complete: GenerateComplete of SGLang's contract; None where a stop text was reached first.
            worker: who answered.
            unreported: why there is no sparsity report.

        Raises:
            UnavailableError: where the server gave the answer up.
            EngineError: as for :meth:`add`.
        """
        response = inference_pb2.GenerateResponse()
        finish = inference_pb2.FINISH_REASON_STOP
        if complete is not None:
            self._check(complete)
            if complete.finish_reason == "abort":
                raise UnavailableError("the server gave the answer up")
            self._cached = complete.cached_tokens
            rest = self._text.finish()
            self._add(response, rest.text, thinks=self._thinks)
            if complete.finish_reason == "length" and not rest.stopped:
                finish = inference_pb2.FINISH_REASON_LENGTH
        if self._calls is not None:
            self._tell(response, self._calls.finish())
            called = self._calls.count and finish == inference_pb2.FINISH_REASON_STOP
            finish = inference_pb2.FINISH_REASON_TOOL_CALLS if called else finish
        response.completion.finish_reason = finish
        response.completion.model = self._model.served.name
        response.completion.worker_id, response.completion.unreported = worker, unreported
        usage = response.completion.usage
        usage.prompt_tokens, usage.completion_tokens = self._prompt, self._tokens
        usage.cached_tokens, usage.reasoning_tokens = min(self._cached, self._prompt), self._thoughts
        usage.time_to_first_token.CopyFrom(_duration(self._first))
        usage.total_time.CopyFrom(_duration(time.monotonic() - self._began))
        return response

    def _check(self, told: Any) -> None:
        if told.prompt_tokens != self._prompt:
            raise EngineError(f"it answered a prompt of {told.prompt_tokens} tokens, and was sent {self._prompt}")
        size = self._model.served.vocabulary_size
        if other := next((token for token in getattr(told, "token_ids", ()) if token >= size), None):
            raise EngineError(f"it sent token {other}, which the model does not have")

    def _of_a_thought(self, token: int) -> bool:
        """Whether a token belongs to what the model thinks before it answers; asked once of each, in order."""
        first, self._tokens = not self._tokens, self._tokens + 1
        if self._marks is None:
            return False
        opens, closes = self._marks
        thinks = self._thinks or (first and token == opens)
        self._thoughts += thinks
        self._thinks = thinks and token != closes
        return thinks

    def _add(self, response: inference_pb2.GenerateResponse, text: str, *, thinks: bool) -> None:
        if thinks:
            response.reasoning += text
        elif self._calls is None:
            response.text += text
        elif text:
            self._tell(response, self._calls.push(text))

    @staticmethod
    def _tell(response: inference_pb2.GenerateResponse, told: Told) -> None:
        response.text += told.text
        response.tool_calls.extend(told.calls)

    def _told(
        self, ids: Sequence[int], values: Sequence[float | None], top: Sequence[Any]
    ) -> Iterator[inference_pb2.TokenLogprob]:
        for place, (token, value) in enumerate(zip(ids, values, strict=False)):
            others = zip(top[place].token_ids, top[place].values, strict=False) if place < len(top) else ()
            yield inference_pb2.TokenLogprob(
                token_id=token, token=self._model.spelling[token], logprob=value, top=self._likeliest(others)
            )

    def _likeliest(self, others: Iterable[tuple[int, float]]) -> Iterator[inference_pb2.TokenAlternative]:
        for _, (token, value) in zip(range(self._top), others, strict=False):
            yield inference_pb2.TokenAlternative(token_id=token, token=self._model.spelling[token], logprob=value)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
