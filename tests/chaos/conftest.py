"""The lines of all faults, together at the end; `--every-fault` fails where one has none."""

from __future__ import annotations

import pytest
from support.telling import FAULTS, told


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-fault", action="store_true", help="fail unless every fault of A to C has its line")


def _missing(config: pytest.Config) -> list[str]:
    return [fault for fault in FAULTS if fault not in told] if config.getoption("--every-fault") else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _missing(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not told:
        return
    terminalreporter.section("faults")
    for fault in FAULTS:
        for line in told.get(fault, ()):
            terminalreporter.write_line(f"{fault:<3} {line}")
    if missing := _missing(config):
        terminalreporter.write_line(f"no line of {', '.join(missing)}", red=True)
