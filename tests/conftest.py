from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.slow import group, rank, why

# Before anything imports grpc: its fork handlers can wait for its own shutdown for ever, when a test starts a process.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# A machine for GPU tests may lack it. How long a case takes says how busy the machine is.
with suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
SLOWEST = 10


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of nothing but slow tests are not even read where `-m` leaves those out: each process reads all others."""
    left_out = "not slow" in config.option.markexpr
    return True if left_out and why(collection_path.relative_to(config.rootpath).as_posix()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if why(item.nodeid):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` a process takes a group of files at a time, in the order of `support.slow`."""
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return LoadGroups(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The slowest tests, with what was set up for them, and why they are."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] += report.duration
    terminalreporter.section(f"{SLOWEST} slowest")
    for test in sorted(seconds, key=lambda test: -seconds[test])[:SLOWEST]:
        reason = why(test)
        terminalreporter.write_line(f"{seconds[test]:7.1f} s {test}{f': {reason}' if reason else ''}")
