"""Writes the Grafana dashboards; with --check, fails when they are stale."""

from __future__ import annotations

import json
import sys

from dashboard_contents import OF_REQUESTS
from dashboard_model import to_grafana
from dashboard_workers import OF_WORKERS
from promql import DASHBOARDS


def main() -> None:
    """Writes or checks them."""
    for dashboard in (*OF_REQUESTS, *OF_WORKERS):
        path = DASHBOARDS / f"{dashboard.name}.json"
        text = json.dumps(to_grafana(dashboard), indent=1) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.name} is stale; run make charts")


if __name__ == "__main__":
    main()
