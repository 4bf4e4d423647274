"""Which worker takes a request: prefix, session, load, cache, warmth."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sparsity_router.fleet.picking import Picker, PrefixIndex, Want, blocks

KB = 1024


def worker(name: str, tokens: int = 0, kv_use: float = 0.0, warmth: float = 1.0) -> Any:
    return SimpleNamespace(name=name, target=name, outstanding_tokens=tokens, kv_use=kv_use, warmth=warmth)


def picks(picker: Picker, workers: list[Any], want: Want | None = None, times: int = 200) -> Counter[str]:
    found = (picker.pick(workers, want) for _ in range(times))
    return Counter(chosen.name for chosen in found if chosen)


def test_nobody_and_only_one() -> None:
    assert Picker().pick([]) is None
    only = worker("a", tokens=10**9)
    assert Picker().pick([only], Want(b"x" * 9000)) is only


def test_the_busiest_of_three_is_never_taken() -> None:
    found = picks(Picker(), [worker("idle"), worker("some", 4000), worker("busy", 50_000)])
    assert found["busy"] == 0
    assert found["idle"] > found["some"] > 0


def test_a_full_cache_counts_where_load_is_equal() -> None:
    assert picks(Picker(), [worker("full", kv_use=0.9), worker("empty")])["full"] == 0


def test_a_new_worker_gets_less_than_a_warm_one_until_that_is_busy() -> None:
    assert picks(Picker(), [worker("new", warmth=0.1), worker("warm", 2000)])["new"] == 0
    assert picks(Picker(), [worker("new", warmth=0.5), worker("warm", 60_000)])["warm"] == 0


def test_a_prompt_goes_where_its_prefix_lies_unless_that_is_much_busier() -> None:
    picker, workers = Picker(), [worker(name) for name in "abcdef"]
    system = b"s" * 16 * KB
    first = picker.pick(workers, Want(system + b"question one"))
    assert first is not None
    assert picks(picker, workers, Want(system + b"question two")) == {first.name: 200}
    first.outstanding_tokens = 10**6
    moved = picker.pick(workers, Want(system + b"question two"))
    assert moved is not None
    first.outstanding_tokens = 2000
    assert picks(picker, workers, Want(system + b"another")) == {moved.name: 200}


def test_tenants_do_not_share_prefixes() -> None:
    assert not set(blocks(Want(b"s" * 9000, "one"))) & set(blocks(Want(b"s" * 9000, "two")))


def test_a_session_stays_where_it_was() -> None:
    picker, workers = Picker(), [worker(name) for name in "abcdef"]
    first = picker.pick(workers, Want(b"short", session="s"))
    assert first is not None
    assert picks(picker, workers, Want(b"other words", session="s")) == {first.name: 200}
    assert len(picks(picker, workers, Want(b"other words", session="t"), 1)) == 1
    assert len(picks(picker, workers, Want(b"short"))) > 1


def test_the_index_is_bounded() -> None:
    index = PrefixIndex(held=100)
    for number in range(50):
        index.sent([bytes([number, block]) for block in range(10)], f"{number}")
    assert len(index) == 100
    assert index.shares([bytes([49, block]) for block in range(10)]) == {"49": 1.0}
    assert index.shares([bytes([0, 0])]) == {}


@given(st.binary(max_size=9000), st.binary(max_size=9000), st.binary(max_size=9000))
def test_equal_blocks_mean_equal_prefixes(common: bytes, one: bytes, other: bytes) -> None:
    first, second = Want(common + one), Want(common + other)
    shared = sum(1 for left, right in zip(blocks(first), blocks(second), strict=False) if left == right)
    assert shared >= len(common) // 2048
    assert first.prompt[: shared * 2048] == second.prompt[: shared * 2048]
