"""Every error that sparsity-router raises on purpose.

SparsityError
├── ConfigurationError      an option, profile, model or address that cannot be used; names it and the remedy
├── InvalidRequestError     a request or document that can never succeed; one violation a field
├── UnauthenticatedError    the call carries no key, or one that is not known
├── PermissionDeniedError   the caller lacks the role; names it
│   └── LeaseError            a lease that is forged, expired, used before, or for something else
├── NotFoundError           no such policy, override or model
├── ConflictError           somebody else wrote first
├── OverloadedError         no room now; the same call may succeed later, in how many seconds it says
│   └── RateLimitError        the tenant has used up its rate
├── UnavailableError        nobody can answer now
│   ├── DrainingError         the process is going away
│   ├── EngineLostError       the engine ended with the request in flight, and the worker ends with it
│   └── StoreError            the policy store cannot be reached or used
├── StreamBrokenError       a worker failed after its first token, or two died of it; nothing is replayed
├── TokenCountError         a prompt's tokens lie outside the interval that its decision was made for
├── EngineError             the engine failed on this request
├── DeadlineError           the caller's deadline passed
├── CancelledError          the caller went away
└── UnimplementedError      in the contract, not in this version
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple, Self

import grpc

CONTEXT_LENGTH: Final = "contextLength"
"""Name in the metadata of a request that is too long: how many tokens the model takes, its answer included."""


class Violation(NamedTuple):
    """One mistake: the field's path, and what is wrong with the remedy."""

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class SparsityError(Exception):
    """Base of the tree.

    Attributes:
        code: the gRPC status it is answered with.
        reason: the kind's name on the wire (AIP-193), such as `STREAM_BROKEN`: several kinds share a status.
        metadata: what a program may read of it, by lowerCamelCase names, such as `tier`, `limit` and `decisionId`.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "SPARSITY"
    metadata: Mapping[str, str] = MappingProxyType({})

    def __init_subclass__(cls) -> None:
        cls.reason = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).upper()

    def about(self, metadata: Mapping[str, str]) -> Self:
        """The same error, which says so much more to programs."""
        self.metadata = {**self.metadata, **metadata}
        return self


class ConfigurationError(SparsityError):
    """An option, profile, model or address that cannot be used."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class InvalidRequestError(SparsityError):
    """A request or document that can never succeed."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations: Sequence[Violation] = violations

    @property
    def field(self) -> str:
        """The path of the first field that is wrong."""
        return self.violations[0].field

    @classmethod
    def of(cls, field: str, problem: str) -> InvalidRequestError:
        """An error of one violation."""
        return cls(Violation(field, problem))

    @classmethod
    def _too_long(cls, field: str, problem: str, context_length: int, remedy: str = "") -> InvalidRequestError:
        # LiteLLM knows it by what comes after the colon, LangChain by what stands before it.
        most = f"this model's maximum context length is {context_length} tokens, the answer's included{remedy}"
        return cls.of(field, f"{problem}: {most}").about({CONTEXT_LENGTH: str(context_length)})

    @classmethod
    def too_long(cls, field: str, problem: str, context_length: int) -> InvalidRequestError:
        """An error of a prompt that leaves no room for an answer."""
        return cls._too_long(field, f"{problem}, the prompt is too long", context_length)

    @classmethod
    def too_long_answer(cls, problem: str, context_length: int) -> InvalidRequestError:
        """An error of a prompt that leaves less room than was asked for."""
        told = f"{problem}, the prompt is too long for so many"
        remedy = "; ask for fewer new tokens, or shorten the prompt"
        return cls._too_long("sampling.max_new_tokens", told, context_length, remedy)

    @classmethod
    def no_text(cls, field: str, error: UnicodeEncodeError) -> InvalidRequestError:
        """An error of a field whose text holds half a surrogate pair, as arguments that are not UTF-8 do."""
        return cls.of(field, f"is no text: {error.object[error.start]!r} at {error.start} stands for no character")


class UnauthenticatedError(SparsityError):
    """The call carries no key, or one that is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(SparsityError):
    """The caller lacks the role."""

    code = grpc.StatusCode.PERMISSION_DENIED


class LeaseError(PermissionDeniedError):
    """A lease that is forged, expired, used before, or for something else."""


class NotFoundError(SparsityError):
    """No such policy, override or model."""

    code = grpc.StatusCode.NOT_FOUND


class ConflictError(SparsityError):
    """Somebody else wrote first."""

    code = grpc.StatusCode.ABORTED


class OverloadedError(SparsityError):
    """No room now; the same call may succeed in ``retry_after`` seconds."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, problem: str, retry_after: float = 1.0) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class RateLimitError(OverloadedError):
    """The tenant has used up its rate."""


class UnavailableError(SparsityError):
    """Nobody can answer now."""

    code = grpc.StatusCode.UNAVAILABLE


class DrainingError(UnavailableError):
    """The process is going away."""


class EngineLostError(UnavailableError):
    """The engine ended with the request in flight, and the worker ends with it."""


class StoreError(UnavailableError):
    """The policy store cannot be reached or used."""


class StreamBrokenError(SparsityError):
    """A worker failed after its first token, or two died with the request in flight; nothing is replayed."""

    code = grpc.StatusCode.ABORTED


class TokenCountError(SparsityError):
    """A prompt's tokens lie outside the interval that its decision was made for; it must be decided anew."""

    code = grpc.StatusCode.OUT_OF_RANGE


class EngineError(SparsityError):
    """The engine failed on this request."""


class DeadlineError(SparsityError):
    """The caller's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(SparsityError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED


class UnimplementedError(SparsityError):
    """In the contract, not in this version."""

    code = grpc.StatusCode.UNIMPLEMENTED
