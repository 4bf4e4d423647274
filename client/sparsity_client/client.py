"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType

from sparsity.v1 import inference_pb2
from sparsity_rpc.tls import ClientTls

from sparsity_client.answer import Answer, Chunk, Explanation
from sparsity_client.request import Request
from sparsity_client.wire.blocking import WireClient
from sparsity_client.wire.requests import to_message
from sparsity_client.wire.values import Gathered, explanation


class Stream(Iterator[Chunk]):
    """A completion as it comes; iterate over its chunks. Closing it early cancels the request."""

    def __init__(self, responses: Iterator[inference_pb2.GenerateResponse]) -> None:
        self._responses = responses
        self._gathered = Gathered()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __next__(self) -> Chunk:
        return self._gathered.add(next(self._responses))

    def answers(self) -> tuple[Answer, ...]:
        """As :meth:`answer`, all answers of a request for several."""
        for _ in self:
            pass
        return self._gathered.answers()

    def answer(self) -> Answer:
        """The whole completion, after what is left of the stream was read.

        Raises:
            SparsityError: the kind tells what failed; StreamBrokenError when the stream was closed before its end.
        """
        for _ in self:
            pass
        return self._gathered.answer()

    def close(self) -> None:
        """Ends the stream; where it has not ended by itself, the request is cancelled."""
        close = getattr(self._responses, "close", None)
        if close is not None:
            close()


class Client:
    """One channel to a router at ``target``; safe to share between threads.

    Args:
        target: `host:port`, or any gRPC target.
        tls: what to trust, for routers and workers alike; None is plain text.
        key: sent to the router as `authorization: Bearer KEY`, an API key or a JWT.
    """

    def __init__(self, target: str, *, tls: ClientTls | None = None, key: str | None = None) -> None:
        self._wire = WireClient(target, tls=tls, key=key)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels; calls in flight are cancelled."""
        self._wire.close()

    def generate(self, request: Request, timeout: float | None = None, *, direct: bool = False) -> Answer:
        """A whole completion.

        Args:
            request: what is asked.
            timeout: seconds for all of it.
            direct: streams from the worker that the router names, and by way of the router where that fails before
                the first message. The client must reach the workers.

        Raises:
            SparsityError: the kind tells what failed.
        """
        return self.stream(request, timeout, direct=direct).answer()

    def stream(self, request: Request, timeout: float | None = None, *, direct: bool = False) -> Stream:
        """A completion as it comes; arguments are those of :meth:`generate`. It begins with the first chunk asked for.

        Raises:
            InvalidRequestError: naming a value that no request can carry; the stream raises what fails later.
        """
        return Stream(self._wire.generate(to_message(request), timeout, direct=direct))

    def explain(self, request: Request, timeout: float | None = 30.0) -> Explanation:
        """The decision that :meth:`generate` would get now, and how it comes to be.

        Raises:
            SparsityError: the kind tells what failed.
        """
        return explanation(self._wire.explain(to_message(request), timeout))

    def report_outcome(
        self,
        decision_id: str,
        score: float,
        metric: str,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = 5.0,
    ) -> None:
        """Reports how good an answer was; see `WireClient.report_outcome`.

        Raises:
            SparsityError: the kind tells what failed; NotFoundError when the decision is not in the log.
        """
        self._wire.report_outcome(decision_id, score, metric, labels, timeout)
