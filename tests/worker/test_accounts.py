"""Accounts of decode steps: priced by their lengths, packed when they are wanted, and cheap."""

from __future__ import annotations

import pickle
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sparsity_worker.keys import PROBE_KEY, REASONING_KEY, STEPWISE_KEY
from sparsity_worker.plugin.accounts.decode_steps import DenseRows, StepPrices
from sparsity_worker.plugin.accounts.ledger import Account, Ledger
from sparsity_worker.plugin.accounts.packing import Followed, Packed
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL, shares_of
from sparsity_worker.plugin.attention import Prompt, Spans

PAGE, CPU = 64, torch.device("cpu")
# A dense layer, one of 4 pages from 300 tokens, one of 2 pages from 100.
PRICES = StepPrices(PAGE, [None, 300, 100], [0, 4, 2])


def priced(ranks: int = 1) -> Ledger:
    ledger = Ledger(layers=4, capacity=8)
    ledger.price_steps([0, 1, 3], [PRICES.attended], heads=6, ranks=ranks)
    return ledger


class Req:
    """What the hooks read of SGLang's requests."""

    def __init__(self, prompt: list[int], **asked: Any) -> None:
        self.origin_input_ids = prompt
        self.output_ids: list[int] = []
        self.sampling_params = SimpleNamespace(custom_params=asked or None)
        self.ended = False

    def finished(self) -> bool:
        return self.ended


def test_a_step_attends_its_pages_and_of_the_last_one_what_is_there() -> None:
    lengths = np.array([99, 257, 300, 321, 6400, 6400])
    attended = PRICES.attended(lengths, np.array([False] * 5 + [True]))
    for length, dense, column in zip(lengths, [False] * 5 + [True], attended.T, strict=True):
        for (start, pages), tokens in zip([(1 << 40, 0), (300, 4), (100, 2)], column, strict=True):
            there = -(-length // PAGE)
            kept = there if dense or length < start else min(there, pages)
            assert tokens == (kept - 1) * PAGE + (length - 1) % PAGE + 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_are_counted_for_all_heads_of_all_ranks(ranks: int) -> None:
    ledger = priced(ranks)
    for length in (299, 300, 6400):
        ledger.step("a", length, dense=length == 6400)
    account = Account.unpack(ledger.pack("a"))
    assert account.calls == 9 * ranks
    # Layer 1 at 300 tokens (5 pages), and layer 3 at 299 and 300.
    assert account.sparse_calls == 3 * ranks
    causal = 299 + 300 + 6400
    assert account.table[:, DECODE, 1].tolist() == [causal * 6 * ranks] * 2 + [0, causal * 6 * ranks]
    assert account.table[3, DECODE, 0] == (6400 + 2 * 128 - (64 - 299 % 64) - (64 - 300 % 64)) * 6 * ranks
    assert account.table[0, DECODE, 0] == causal * 6 * ranks
    # Nothing is counted twice, and ranks have nothing to add up.
    assert ledger.pack("a") == ledger.pack("a")
    ledger.settle(["a"], lambda mine: pytest.fail("nothing to add up"))


def test_a_step_that_ran_ahead_is_left_for_later() -> None:
    ledger, req = priced(), Req([1] * 400)
    ledger.step("a", 401, dense=False)
    packed = Packed(ledger, "a", Followed.of(req, {}))
    ledger.step("a", 402, dense=False)
    later = Packed(ledger, "a", Followed.of(req, {}))
    assert pickle.loads(pickle.dumps(packed)) == b"", "nobody reads the account of a request that goes on"
    req.ended = True
    assert Account.unpack(pickle.loads(pickle.dumps(packed))).calls == 3
    assert Account.unpack(bytes(later)).calls == 6
    assert bytes(Packed(ledger, "nobody", None)) == b""
    stepwise = Req([1] * 400, **{STEPWISE_KEY: True})
    assert Account.unpack(bytes(Packed(ledger, "a", Followed.of(stepwise, {})))).calls == 6


def test_spans_are_counted_by_tokens_that_were_not_known_when_their_steps_began() -> None:
    opening, closing = 8, 9
    req = Req([1] * 500, **{REASONING_KEY: [opening, closing], PROBE_KEY: True})
    followed, ledger = Followed.of(req, {}), priced()
    assert followed is Followed.of(req, {})
    assert followed.prompt() == Prompt(500, probe=True, markers=(opening, closing))
    text = [1, opening, 2, 3, closing, 4]
    for count in range(len(text) - 1):
        # The batch is made when the token that it reads is not out yet.
        req.output_ids = text[:count]
        assert followed.prompt().reasoning == (opening in text[:count] and closing not in text[:count])
        ledger.step("a", 501 + count, dense=False)
    req.output_ids, req.ended = text, True
    account = Account.unpack(bytes(Packed(ledger, "a", followed)))
    assert account.reasoning == 3
    # Two of five steps were sparse in the two sparse layers.
    assert (account.sparse_calls, account.calls) == (4, 15)
    always = Req([1] * 500, **{REASONING_KEY: []})
    assert Followed.of(always, {}).prompt() == Prompt(500, reasoning=True)


def test_of_a_pass_those_tokens_count_that_no_earlier_one_attended() -> None:
    nothing, everything = [0.0] * 4, [1.0] * 4
    assert shares_of(300, 300, 0, 300).tolist() == [everything, nothing]
    # A chunk after a cached prefix, a step, and one of a request that nobody knows.
    assert shares_of(300, 100, 0, 600).tolist() == [everything, nothing]
    assert shares_of(301, 1, 300, 300).tolist() == shares_of(301, 1, 0, 0).tolist() == [nothing, everything]
    # Taken back after 4 steps, and read anew: wholly known, one token more, and more of the prompt than was known.
    assert shares_of(304, 48, 304, 300).tolist() == [nothing, nothing]
    pairs = 304 / sum(range(257, 305))
    assert shares_of(304, 48, 303, 300).tolist() == [nothing, [pairs, pairs, 1 / 48, 1 / 48]]
    parts = shares_of(304, 48, 280, 300)
    assert parts[0, 3] + parts[1, 3] == pytest.approx(24 / 48)
    assert parts[:, 0] == pytest.approx([sum(range(281, 301)) * pairs / 304, sum(range(301, 305)) * pairs / 304])
    assert shares_of(0, 0, 0, 0).tolist() == [nothing, nothing]


def test_a_step_that_is_taken_again_counts_once() -> None:
    ledger = priced()
    for length in (401, 402, 402, 403):
        ledger.step("a", length, dense=False)
    assert ledger.steps("a") == 3
    assert Account.unpack(ledger.pack("a")).table[0, DECODE, 1] == (401 + 402 + 403) * 6


def test_what_is_not_read_yet_is_booked_when_it_is_asked_for() -> None:
    ledger, arrived, table = Ledger(layers=1, capacity=8), [False], np.array([[10.0, 20.0, 4.0, 4.0]])

    def enter(rid: str) -> None:
        assert rid != "late" or arrived[0], "the host waited for the device"
        ledger.add_layers(rid, shares_of(8, 8, 0, 8), [0], table)

    ledger.defer(["a"], lambda: enter("a"), lambda: False)
    ledger.defer(["late"], lambda: enter("late"), lambda: arrived[0])
    assert Account.unpack(ledger.pack("a")).density(PREFILL).tolist() == [0.5]
    ledger.defer(["b"], lambda: enter("b"), lambda: True)
    arrived[0] = True
    ledger.defer(["c"], lambda: enter("c"), lambda: True)
    assert Account.unpack(ledger.pack("late")).calls == 1
    assert Account.unpack(ledger.pack("a")).calls == 1


def test_rows_are_dense_by_length_and_by_their_newest_token() -> None:
    ledger = priced()
    rows = DenseRows(4, [{1: 4096, 4: 1000}], ledger, CPU)
    assert [rows.shortest(count) for count in (0, 1, 3, 4, 9)] == [0, 4096, 4096, 1000, 1000]
    assert DenseRows(4, [{2: 7}], ledger, CPU).shortest(1) == 0
    prompts = [Prompt(1, markers=(8, 9)), Prompt(1), Prompt(1, reasoning=True, markers=(8, 9)), Prompt(1)]
    lengths = [5000, 5000, 5000, 999]
    rows.stage(Spans(["a", "b", "c", "d"], [0] * 4, lengths, [1] * 4, prompts))
    dense = torch.tensor([prompt.reasoning for prompt in prompts])
    rows.apply(dense, torch.tensor(lengths), torch.tensor([8, 8, 9, 1]))
    assert dense.tolist() == [True, False, False, True]
    rows.book()
    rows.book()
    assert [ledger.steps(rid) for rid in "abcd"] == [1] * 4
    assert Account.unpack(ledger.pack("d")).sparse_calls == 0
    # A smaller batch after it, without markers.
    rows.stage(Spans(["b"], [0], [4095], [1], [Prompt(1)]))
    dense = torch.tensor([False, False, True, False])
    rows.apply(dense, torch.tensor([4096, 4095, 1, 1]), torch.tensor([8, 8, 9, 1]))
    assert dense.tolist() == [False, True, True, True]


@pytest.mark.skipif(sys.gettrace() is not None, reason="`make coverage` follows every line, which takes longer")
def test_accounts_take_under_one_percent_of_a_step() -> None:
    """32 requests; the fastest such step of an 8B model takes some 10 ms."""
    ledger = Ledger(layers=32, capacity=64)
    ledger.price_steps(range(32), [StepPrices(PAGE, [300] * 32, [32] * 32).attended], heads=32, ranks=1)
    rows, reqs = DenseRows(32, [{1: 4096}], ledger, CPU), [Req([1] * 8) for _ in range(32)]
    rids = [f"r{number}" for number in range(32)]
    followed = {rid: Followed.of(req, {}) for rid, req in zip(rids, reqs, strict=True)}

    def step(length: int) -> float:
        started = time.thread_time()
        prompts = {rid: each.prompt() for rid, each in followed.items()}
        rows.stage(Spans(rids, [0] * 32, [length] * 32, [1] * 32, list(prompts.values())))
        rows.book()
        pickle.dumps([Packed(ledger, rid, followed[rid]) for rid in rids])
        return time.thread_time() - started

    assert min(step(5000 + number) for number in range(50)) < 2e-4
    reqs[0].ended = True
    started = time.thread_time()
    assert len(bytes(Packed(ledger, rids[0], followed[rids[0]]))) > 1000
    assert time.thread_time() - started < 0.02
