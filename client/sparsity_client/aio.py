"""The asynchronous client, for `asyncio` services."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType

from sparsity.v1 import inference_pb2
from sparsity_rpc.tls import ClientTls

from sparsity_client.answer import Answer, Chunk, Explanation
from sparsity_client.request import Request
from sparsity_client.wire.aio import AsyncWireClient
from sparsity_client.wire.requests import to_message
from sparsity_client.wire.values import Gathered, explanation


class AsyncStream(AsyncIterator[Chunk]):
    """A completion as it comes, see `Stream`; leave it by `async with`, or :meth:`aclose` it."""

    def __init__(self, responses: AsyncGenerator[inference_pb2.GenerateResponse]) -> None:
        self._responses = responses
        self._gathered = Gathered()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> Chunk:
        return self._gathered.add(await anext(self._responses))

    async def answers(self) -> tuple[Answer, ...]:
        """As :meth:`answer`, all answers of a request for several."""
        async for _ in self:
            pass
        return self._gathered.answers()

    async def answer(self) -> Answer:
        """The whole completion, after what is left of the stream was read.

        Raises:
            SparsityError: the kind tells what failed; StreamBrokenError when the stream was closed before its end.
        """
        async for _ in self:
            pass
        return self._gathered.answer()

    async def aclose(self) -> None:
        """Ends the stream; where it has not ended by itself, the request is cancelled."""
        await self._responses.aclose()


class AsyncClient:
    """One channel to a router at ``target``, for one event loop; arguments and methods are those of `Client`."""

    def __init__(self, target: str, *, tls: ClientTls | None = None, key: str | None = None) -> None:
        self._wire = AsyncWireClient(target, tls=tls, key=key)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels; calls in flight are cancelled."""
        await self._wire.close()

    async def generate(self, request: Request, timeout: float | None = None, *, direct: bool = False) -> Answer:
        """A whole completion; see `Client.generate`.

        Raises:
            SparsityError: the kind tells what failed.
        """
        async with self.stream(request, timeout, direct=direct) as stream:
            return await stream.answer()

    def stream(self, request: Request, timeout: float | None = None, *, direct: bool = False) -> AsyncStream:
        """A completion as it comes; see `Client.stream`.

        Raises:
            InvalidRequestError: naming a value that no request can carry; the stream raises what fails later.
        """
        return AsyncStream(self._wire.generate(to_message(request), timeout, direct=direct))

    async def explain(self, request: Request, timeout: float | None = 30.0) -> Explanation:
        """The decision that :meth:`generate` would get now, and how it comes to be.

        Raises:
            SparsityError: the kind tells what failed.
        """
        return explanation(await self._wire.explain(to_message(request), timeout))

    async def report_outcome(
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
        await self._wire.report_outcome(decision_id, score, metric, labels, timeout)
