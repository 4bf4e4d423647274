"""Which worker takes a request: prefix, session, load, cache, warmth."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sparsity_policies.model import Tier
from sparsity_router.fleet.picking import Picker, PrefixIndex, Want, blocks

KB = 1024
SPARSE = Tier.AGGRESSIVE


def worker(name: str, tokens: int = 0, kv_use: float = 0.0, warmth: float = 1.0, *, serves_dense: bool = False) -> Any:
    known = {"outstanding_tokens": tokens, "kv_use": kv_use, "warmth": warmth, "serves_dense": serves_dense}
    return SimpleNamespace(name=name, target=name, **known)


def picks(picker: Picker, workers: list[Any], want: Want | None = None, times: int = 200) -> Counter[str]:
    found = (picker.pick(workers, SPARSE, want) for _ in range(times))
    return Counter(chosen.name for chosen in found if chosen)


def test_nobody_and_only_one() -> None:
    assert Picker().pick([], SPARSE) is None
    only = worker("a", tokens=10**9)
    assert Picker().pick([only], SPARSE, Want(b"x" * 9000)) is only


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
    first = picker.pick(workers, SPARSE, Want(system + b"question one"))
    assert first is not None
    assert picks(picker, workers, Want(system + b"question two")) == {first.name: 200}
    first.outstanding_tokens = 10**6
    moved = picker.pick(workers, SPARSE, Want(system + b"question two"))
    assert moved is not None
    first.outstanding_tokens = 2000
    assert picks(picker, workers, Want(system + b"another")) == {moved.name: 200}


def test_tenants_do_not_share_prefixes() -> None:
    assert not set(blocks(Want(b"s" * 9000, "one"), SPARSE)) & set(blocks(Want(b"s" * 9000, "two"), SPARSE))


def test_tiers_do_not_share_prefixes() -> None:
    wanted = Want(b"s" * 9000, "one", "session")
    assert not set(blocks(wanted, Tier.DENSE)) & set(blocks(wanted, SPARSE))
    picker, workers = Picker(), [worker(name) for name in "abcdefgh"]
    for tier in Tier:
        # Each tier's prompts have a place of their own, and keep it.
        assert len({picker.pick(workers, tier, wanted).name for _ in range(30)}) == 1  # type: ignore[union-attr]
    first = Counter(Picker().pick(workers, SPARSE, wanted).name for _ in range(60))  # type: ignore[union-attr]
    assert len(first) > 1


def test_dense_room_is_kept_while_those_that_do_not_serve_dense_have_room_too() -> None:
    shared = [worker(name, serves_dense=True) for name in "abc"]
    own = worker("own", 4000)
    assert picks(Picker(), [*shared, own]) == {"own": 200}
    own.outstanding_tokens = 60_000
    assert picks(Picker(), [*shared, own])["own"] == 0
    # Where the prefix lies counts for more.
    picker, wanted = Picker(), Want(b"s" * 16 * KB)
    own.outstanding_tokens = 60_000
    kept = picker.pick([*shared, own], SPARSE, wanted)
    assert kept is not None
    own.outstanding_tokens = 4000
    assert picks(picker, [*shared, own], wanted) == {kept.name: 200}


def test_among_workers_that_all_serve_dense_load_decides() -> None:
    found = picks(Picker(), [worker("idle", serves_dense=True), worker("busy", 50_000, serves_dense=True)])
    assert found == {"idle": 200}


def test_a_session_stays_where_it_was() -> None:
    picker, workers = Picker(), [worker(name) for name in "abcdef"]
    first = picker.pick(workers, SPARSE, Want(b"short", session="s"))
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
    pairs = zip(blocks(first, SPARSE), blocks(second, SPARSE), strict=False)
    shared = sum(1 for left, right in pairs if left == right)
    assert shared >= len(common) // 2048
    assert first.prompt[: shared * 2048] == second.prompt[: shared * 2048]
