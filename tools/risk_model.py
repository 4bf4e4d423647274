"""Learns the shipped model of risk from shipped texts and exemplars; with --check, fails when the file is of others.

The file holds the digest of what it was learnt from: learning takes half a minute, comparing it none.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.risk import base, corpus

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "policies" / "sparsity_policies" / "risk" / base.FILE


def exemplars() -> dict[str, tuple[str, ...]]:
    """Of the shipped policies, by domain."""
    return {p.domain: p.detection.exemplars for p in shipped_policies("standard") if p.detection.exemplars}


def stale() -> list[str]:
    """What the file was not learnt from, in words."""
    found = []
    if base.base().data != corpus.shipped_digest():
        found.append("the shipped texts have changed")
    if dict(base.base().exemplars) != exemplars():
        found.append("the exemplars of the shipped policies have changed")
    return found


def main() -> None:
    """Writes the file, or checks it."""
    if "--check" in sys.argv:
        if problems := stale():
            sys.exit(f"{'; '.join(problems)}: run `make risk-model`")
        return
    train, calibration = corpus.shipped("train"), corpus.shipped("calibration")
    model = base.learnt(train, corpus.shipped_terms(), calibration, exemplars())
    base.save(FILE, model, exemplars(), corpus.shipped_digest())


if __name__ == "__main__":
    main()
