from __future__ import annotations

import pytest
from sparsity.v1 import inference_pb2
from sparsity_cli.requests.demo import Row, _fill
from sparsity_policies.model import Tier


@pytest.mark.parametrize(
    ("tier", "prefill", "decode", "words"),
    [
        ("aggressive", 1.0, 1.0, "attended everything"),
        ("aggressive", 1.0, 0.4, "attended the whole prompt"),
        ("moderate", 0.3, 1.0, ""),
        ("dense", 1.0, 1.0, ""),
    ],
)
def test_a_sparse_tier_that_attended_everything_is_marked(tier: str, prefill: float, decode: float, words: str) -> None:
    row, completion = Row("r", ""), inference_pb2.Completion()
    completion.decision.tier = Tier[tier.upper()].value
    completion.decision.reason = inference_pb2.REASON_LENGTH_BAND
    completion.sparsity.prefill_density, completion.sparsity.decode_density = prefill, decode
    _fill(row, completion)
    assert row.tier == tier
    assert row.whole == words


def test_what_was_not_reported_is_neither_sparse_nor_whole() -> None:
    row = Row("r", "", "aggressive")
    assert (row.density, row.coverage, row.whole) == (None, None, "")
