"""The token bucket."""

from __future__ import annotations

import time

import pytest
from sparsity_serving.token_bucket import TokenBucket


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def spent(bucket: TokenBucket, tokens: float = 1.0) -> int:
    return sum(bucket.spend(tokens) for _ in range(1000))


def test_it_is_full_at_first_and_fills_at_its_rate_up_to_its_bound(clock: list[float]) -> None:
    bucket = TokenBucket(per_second=2.0, most=10.0)
    assert spent(bucket) == 10
    clock[0] += 3
    assert spent(bucket, 2.0) == 3
    clock[0] += 1000
    assert spent(bucket) == 10
    assert not bucket.spend(0.5)


def test_what_is_earned_counts_up_to_the_bound(clock: list[float]) -> None:
    bucket = TokenBucket(per_second=0.0, most=4.0)
    assert spent(bucket) == 4
    bucket.earn(2.5)
    assert spent(bucket) == 2
    bucket.earn(100.0)
    assert spent(bucket) == 4


def test_another_size_keeps_what_is_left_but_no_more_than_its_bound(clock: list[float]) -> None:
    bucket = TokenBucket(per_second=1.0, most=10.0)
    bucket.resize(1.0, 100.0)
    assert spent(bucket) == 10
    clock[0] += 50
    bucket.resize(1.0, 5.0)
    assert spent(bucket) == 5
