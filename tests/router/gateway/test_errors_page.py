"""docs/errors.md has every kind of errors, with its statuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sparsity_router.gateway.refusals import http_status
from sparsity_rpc import errors

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def kinds(base: type[errors.SparsityError] = errors.SparsityError) -> Iterator[type[errors.SparsityError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from kinds(kind)


def test_every_reason_is_on_the_page_with_its_statuses() -> None:
    found = re.findall(r"(?m)^\| `([A-Z_]+)` \| ([A-Z_]+) \| (\d+) \| [^|]+ \| [^|]+ \| [^|]+ \|$", PAGE)
    assert found == [(kind.reason, kind.code.name, str(http_status(kind))) for kind in kinds()]


def test_every_refusal_of_http_alone_is_on_the_page() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "router/sparsity_router/gateway").glob("*.py")
    )
    raised = re.findall(r'HttpError\((\d+), "(\w+)"', source)
    assert raised
    assert sorted(set(raised)) == sorted(re.findall(r"(?m)^\| (\d+) \| `(\w+)` \| [^|]+ \|$", PAGE))
