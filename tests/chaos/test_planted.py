"""A risk phrase is found wherever it stands, in prompts of 1 to 400 KB."""

from __future__ import annotations

import pytest
from sparsity_policies.decisions.decide import decide
from sparsity_policies.model import Reason, Signals, Tier
from sparsity_router.prompts.corpus import excerpt
from support.stores.snapshots import snapshot

PHRASE = "attorney-client\nprivilege"
# Every offset of the short ones; of the next by less than the phrase is long, which lies across every boundary then; of
# the long ones by a stride that meets every alignment.
SIZES = ((1_000, 1), (4_096, 1), (16_384, 23), (65_536, 127), (400_000, 1999))


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_a_planted_phrase_is_found_at_every_offset(size: int, stride: int) -> None:
    at = snapshot()
    text = excerpt(size).encode("ascii", "replace").decode()
    assert not at.scanner.scan(text).flags
    for offset in range(0, size, stride):
        found = at.scanner.scan(f"{text[:offset]} {PHRASE} {text[offset:]}")
        assert found.flags == {"legal"}, offset
        assert found.scanned_bytes == size + len(PHRASE) + 2
    decision = decide(Signals(9000, 9000, domain="rag", flags=found.flags), at)
    assert (decision.tier, decision.reason) == (Tier.DENSE, Reason.FLAGGED)
