"""The answer of one request on its way out: tokens become text, reasoning, calls and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sparsity.v1 import inference_pb2
from sparsity_serving.tokens.detokenizer import IncrementalDetokenizer
from sparsity_serving.tokens.spelling import Spelling
from tokenizers import Tokenizer

from sparsity_worker.calls.parsing import ChatParser
from sparsity_worker.engine.logprobs import Scored
from sparsity_worker.engine.sglang_engine import Step


class Answer:
    """One answer.

    Args:
        tokenizer: of the model.
        spelling: of its tokens.
        stops: texts that end it.
        parser: takes its text apart.
        ends: token ids that end a turn; where calls are looked for, other control tokens may be their marks.

    Attributes:
        stopped: whether a stop text was reached.
        tokens: that were generated.
        reasoning_tokens: of them, those that are reasoning.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spelling: Spelling,
        stops: tuple[str, ...],
        parser: ChatParser,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        self._spelling = spelling
        self._parser = parser
        self._ends = ends
        self._text = IncrementalDetokenizer(tokenizer, stops, shows_control=not parser.idle)
        self.stopped = False
        self.tokens = self.reasoning_tokens = 0

    def add(self, step: Step) -> Iterator[inference_pb2.GenerateResponse]:
        """What a step of the engine adds, as one message or none."""
        self.tokens += len(step.token_ids)
        response = inference_pb2.GenerateResponse(token_ids=step.token_ids)
        response.logprobs.extend(map(self._told, step.logprobs))
        response.prompt_logprobs.extend(map(self._told, step.prompt_logprobs))
        thinking = self._parser.reasoning
        # One by one where they are told apart; a step has several on a busy machine.
        for token_ids in [step.token_ids] if self._parser.idle else [[token] for token in step.token_ids]:
            self.reasoning_tokens += thinking is not None and thinking.goes_on
            piece = self._text.push(
                token_ids if self._parser.idle else [each for each in token_ids if each not in self._ends]
            )
            self.stopped = piece.stopped
            self._add(response, piece.text, last=piece.stopped)
            if self.stopped:
                break
        if step.finish and not self.stopped:
            rest = self._text.finish()
            self.stopped = rest.stopped
            self._add(response, rest.text, last=True, cut_off=step.finish == "length" and not rest.stopped)
        if response.ByteSize():
            yield response

    def finish_reason(self, finish: str) -> inference_pb2.FinishReason.ValueType:
        """Why it ended, where the engine says ``finish``."""
        if finish == "length" and not self.stopped:
            return inference_pb2.FINISH_REASON_LENGTH
        called = self._parser.calls is not None and self._parser.calls.any
        return inference_pb2.FINISH_REASON_TOOL_CALLS if called else inference_pb2.FINISH_REASON_STOP

    def _add(self, response: inference_pb2.GenerateResponse, text: str, *, last: bool, cut_off: bool = False) -> None:
        parsed = self._parser.push(text, last=last, cut_off=cut_off)
        response.text += parsed.text
        response.reasoning += parsed.reasoning
        response.tool_calls.extend(parsed.calls)

    def _told(self, place: Scored) -> inference_pb2.TokenLogprob:
        return inference_pb2.TokenLogprob(
            token_id=place.token_id,
            token=self._spelling[place.token_id],
            logprob=place.logprob,
            top=self._alternatives(place.top),
        )

    def _alternatives(self, top: Iterable[tuple[int, float]]) -> Iterator[inference_pb2.TokenAlternative]:
        for token_id, logprob in top:
            yield inference_pb2.TokenAlternative(token_id=token_id, token=self._spelling[token_id], logprob=logprob)
