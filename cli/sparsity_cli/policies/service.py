"""Calls of PolicyService, and what the commands share."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import grpc
import typer
from sparsity.v1 import policy_pb2, policy_pb2_grpc
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.status import to_error

from sparsity_cli.connection import call_metadata, channel_to
from sparsity_cli.console import DEFAULT_ROUTER, reported

TIMEOUT_SECONDS = 30.0
_PAGE = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# One more must still be a place in a domain's history.
MOST_REVISION = 2**63 - 2
# Of a rollout's pause, the smallest field that holds one.
_LONGEST = 2**32 - 1


def _domains(incomplete: str) -> list[str]:
    """Domains that begin so, for the shell's completion; none when no router answers."""
    router = os.environ.get("SPARSITY_ROUTER", DEFAULT_ROUTER)
    try:
        with channel_to(router) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            page = stub.ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=1.0, metadata=call_metadata())
    except grpc.RpcError:
        return []
    return [stored.policy.domain for stored in page.policies if stored.policy.domain.startswith(incomplete)]


DomainArgument = Annotated[str, typer.Argument(help="The policy's domain.", autocompletion=_domains)]
Reason = Annotated[str, typer.Option(help="Why, for the revision log.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


class Service:
    """PolicyService at one router; the key of SPARSITY_KEY goes with every call."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = policy_pb2_grpc.PolicyServiceStub(channel)

    def call(self, method: str, request: Any, timeout: float = TIMEOUT_SECONDS) -> Any:
        """The answer of one call.

        Raises:
            SparsityError: the kind tells what failed.
        """
        try:
            return getattr(self._stub, method)(request, timeout=timeout, metadata=call_metadata())
        except grpc.RpcError as error:
            raise to_error(error) from error

    def get(self, domain: str) -> policy_pb2.StoredPolicy:
        """One stored policy."""
        found: policy_pb2.StoredPolicy = self.call("GetPolicy", policy_pb2.GetPolicyRequest(domain=domain)).policy
        return found

    def list(self) -> tuple[int, list[policy_pb2.StoredPolicy]]:
        """The store's revision and all policies."""
        pages = [*self.pages("ListPolicies", policy_pb2.ListPoliciesRequest())]
        return pages[-1].revision, [stored for page in pages for stored in page.policies]

    def pages(self, method: str, request: Any) -> Iterator[Any]:
        """The pages of a listing, each fetched when it is asked for."""
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def newest(self, method: str, request: Any, field: str, limit: int) -> Any:
        """The first ``limit`` entries of a listing, out of ``field`` of its pages."""
        request.page_size = min(limit, _PAGE)
        entries = (entry for page in self.pages(method, request) for entry in getattr(page, field))
        return [*itertools.islice(entries, limit)]


@contextmanager
def service(router: str) -> Iterator[Service]:
    """The service at ``router``; errors inside end the command with their code."""
    with reported(), channel_to(router) as channel:
        yield Service(channel)


def need_reason(reason: str, instead: str = "") -> str:
    """The reason.

    Raises:
        InvalidRequestError: when it is empty.
    """
    if not reason:
        raise InvalidRequestError.of("--reason", f"is missing; say why{instead}")
    return reason


def confirm(question: str, yes: bool) -> None:
    """Asks at a terminal; elsewhere --yes has to say it.

    Raises:
        InvalidRequestError: when nobody agreed.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequestError.of("--yes", f"is missing, and there is no terminal to ask at: {question}")
    if not typer.confirm(question, err=True):
        raise InvalidRequestError.of("--yes", "nothing was done")


def seconds(text: str, option: str) -> float:
    """A time such as `90s`, `30m`, `1h` or `2d`.

    Raises:
        InvalidRequestError: naming ``option``.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found or not 0 < (length := float(found[1]) * _UNITS[found[2]]) <= _LONGEST:
        most = f"of at most {_LONGEST // _UNITS['d']} days"
        raise InvalidRequestError.of(option, f"must be a time such as 90s, 30m, 1h or 2d, {most}, not {text!r}")
    return length
