"""One Generate of a server of stock SGLang, read as a worker's call is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError, OverloadedError, SparsityError
from sparsity_rpc.reading import readable
from sparsity_rpc.status import as_call_error

from sparsity_router.fleet.stock.answers import StockAnswer
from sparsity_router.fleet.stock.contract import CONSTRAINT_FAILED

# How SGLang says that no more may wait, by the status of a server that is gone.
_FULL: Final = "queue is full"

Opened = tuple[Any, StockAnswer]


class StockCall:
    """The messages, one by one; cancelled, or left before its end, it is aborted in the engine.

    Args:
        opening: begins the call of SGLang's contract, once its prompt is tokens.
        abort: ends the request in the engine.
        worker: who answers.
        unreported: why there is no sparsity report.
    """

    def __init__(
        self,
        opening: Callable[[], Awaitable[Opened]],
        abort: Callable[[], None],
        worker: str,
        unreported: str,
    ) -> None:
        self._opening, self._abort = opening, abort
        self._worker, self._unreported = worker, unreported
        self._call: Any = None
        self._answer: StockAnswer
        self._ready: deque[inference_pb2.GenerateResponse] = deque()
        self._ended = self._cancelled = False

    def __aiter__(self) -> StockCall:
        return self

    async def __anext__(self) -> worker_pb2.WorkerServiceGenerateResponse:
        """The next message.

        Raises:
            grpc.aio.AioRpcError: as the call ends, or as workers of ours end such a call.
        """
        try:
            while not self._ready:
                if self._ended:
                    raise StopAsyncIteration
                await self._read()
        except SparsityError as error:
            self.cancel()
            raise as_call_error(error) from error
        except grpc.aio.AioRpcError as error:
            # At a deadline, or a message that cannot be read, its engine would go on.
            self.cancel()
            self._ended = True
            raise _told(error) from error
        return worker_pb2.WorkerServiceGenerateResponse(response=self._ready.popleft())

    def cancel(self) -> bool:
        """Ends it; whether there was anything to end."""
        if self._ended or self._cancelled:
            return False
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()
            # A server that is just writing to us notices that we are gone, and lets its engine go on.
            self._abort()
        return True

    async def _read(self) -> None:
        if self._call is None:
            opened = await self._opening()
            if self._cancelled:
                opened[0].cancel()
                raise asyncio.CancelledError
            self._call, self._answer = opened
        message = await self._call.read()
        if message is grpc.aio.EOF:
            self._ended = True
            return
        found = readable(message)
        kind = found.WhichOneof("response")
        if kind == "chunk":
            response = self._answer.add(found.chunk)
            if response.ByteSize():
                self._ready.append(response)
            if self._answer.stopped:
                self._ready.append(self._answer.end(None, self._worker, self._unreported))
                self.cancel()
                self._ended = True
        elif kind == "complete":
            self._ready.append(self._answer.end(found.complete, self._worker, self._unreported))
            self._ended = True


def _told(error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """A failure of the server in the words of workers of ours."""
    details, trailers = error.details() or "", dict(error.trailing_metadata() or ())
    if CONSTRAINT_FAILED in trailers:
        return as_call_error(InvalidRequestError.of("sampling.response_format", f"cannot be used: {details}"))
    if error.code() is grpc.StatusCode.UNAVAILABLE and _FULL in details:
        return as_call_error(OverloadedError(details))
    return error
