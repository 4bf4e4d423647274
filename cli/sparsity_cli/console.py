"""Output of the commands: data on stdout, everything else on stderr; errors become exit codes here."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from sparsity.v1 import inference_pb2
from sparsity_router.embedded.restarts import PROGRESS_SECONDS
from sparsity_rpc.errors import (
    ConfigurationError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    SparsityError,
    UnauthenticatedError,
    UnavailableError,
)
from sparsity_rpc.status import to_error
from sparsity_serving.addresses import ROUTER

# Piped output is not cut to the width of a terminal that is not there.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)

EXIT_CODES: dict[type[SparsityError], int] = {
    InvalidRequestError: 2,
    ConfigurationError: 2,
    NotFoundError: 3,
    UnavailableError: 4,
    ConflictError: 5,
    UnauthenticatedError: 6,
    PermissionDeniedError: 6,
}
# What protobuf says of a number, before it.
_OUT_OF_RANGE = "Value out of range: "
DEFAULT_ROUTER = ROUTER

Router = Annotated[str, typer.Option("--router", envvar="SPARSITY_ROUTER", help="The router's address, host:port.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
State = Annotated[
    Path | None, typer.Option("--state", envvar="SPARSITY_STATE", help="The embedded service's state folder.")
]


@contextmanager
def reported() -> Iterator[None]:
    """Prints an error as one line a mistake, and exits with its code."""
    try:
        yield
    except SparsityError as error:
        _fail(error)
    except grpc.RpcError as error:
        _fail(to_error(error))
    except UnicodeEncodeError as error:
        # No message takes it; its words tell which argument it was.
        _fail(InvalidRequestError.no_text(ascii(error.object), error))
    except ValueError as error:
        if not str(error).startswith(_OUT_OF_RANGE):
            raise
        # Likewise of a number that no field of its message holds.
        _fail(InvalidRequestError.of(str(error).removeprefix(_OUT_OF_RANGE), "is out of range: no message takes it"))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os._exit(141)


def _fail(error: SparsityError) -> None:
    lines = (
        [str(violation) for violation in error.violations] if isinstance(error, InvalidRequestError) else [str(error)]
    )
    for line in lines:
        err.print(f"[red]error:[/red] {escaped(line)}", soft_wrap=True)
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    raise typer.Exit(code) from None


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on stderr what is waited for: all the time on a terminal, elsewhere in a line every few seconds."""
    if err.is_terminal:
        with err.status(f"{escaped(what)} ..."):
            yield
        return
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(PROGRESS_SECONDS):
            err.print(f"[dim]{escaped(what)}: {time.monotonic() - began:.0f} s[/dim]", soft_wrap=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def escaped(text: str) -> str:
    """Text that is printed as it is, brackets included."""
    return text.replace("[", "\\[")


def clock(time: Timestamp) -> str:
    """A time as people read it, in their zone."""
    return f"{datetime.fromtimestamp(time.seconds):%Y-%m-%d %H:%M:%S}"


def to_dict(message: Message) -> dict[str, Any]:
    """A message with stable keys: field names as in the contract, defaults included."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def coverage(report: inference_pb2.SparsityReport) -> str:
    """How much softmax mass was kept, estimated and, where it was, measured."""
    measured = f" (measured {report.measured_coverage:.3f} on {report.measured_rows} rows)"
    return f"{report.coverage:.3f}{measured if report.HasField('measured_coverage') else ''}"


def tier_word(value: int) -> str:
    """A tier as people write it."""
    from sparsity_policies.model import Tier

    return Tier(value).word if value else "-"
