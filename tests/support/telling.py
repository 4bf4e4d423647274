"""A line for each fault: what was sent, what came back, and what others saw who were under way all the while."""

from __future__ import annotations

from typing import Final

FAULTS: Final = (
    *(f"A{number}" for number in range(1, 12)),
    *(f"B{number}" for number in range(1, 9)),
    *(f"C{number}" for number in range(1, 6)),
)
"""Less attention than policy gives (A), one request that hurts another (B), a policy that hangs a router (C)."""
told: dict[str, list[str]] = {}


def tell(fault: str, sent: str, came: object, others: object) -> None:
    """Prints the line of a fault, once all that it says has been checked."""
    assert fault in FAULTS
    line = f"sent: {sent}; came: {came}; others: {others}"
    told.setdefault(fault, []).append(line)
    print(f"\n{fault:<3} {line}", end=" ")
