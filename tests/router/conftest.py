"""An option of test_never_sparser."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutation", metavar="NAME", help="the fault that test_never_sparser puts back, and must find")
