"""What is told of a request that the engine took back and read anew: each of its tokens once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sparsity_worker.plugin.accounts.decode_steps import DenseRows
from sparsity_worker.plugin.accounts.ledger import Account, Ledger
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL
from sparsity_worker.plugin.attention import MEASURED_ROWS, Prompt, Spans
from sparsity_worker.plugin.torch_attention import TorchAttention
from sparsity_worker.plugin.triton_attention import TritonAttention
from sparsity_worker.profiles.profile import parse_profile
from support.kernels.devices import DEVICE, on
from support.kernels.paging import PAGE, SUB, joined, queries
from support.workers.profiles import profile_document

HEADS, KV_HEADS, DIM, PROMPT = 4, 2, 16, 300
CHANGE = {"query_tile": 32, "window": 16, "sink": 16, "sparse_from": 60}
DECODE_CHANGE = {"sparse_from": 60, "budget": 96, "sink": 16, "recent": 16}
LAYER: Any = SimpleNamespace(layer_id=0, scaling=DIM**-0.5, tp_q_head_num=HEADS)


PLAIN = Prompt(PROMPT)


def account(kernels: bool, passes: list[tuple[int, int]], prompt: Prompt = PLAIN) -> Account:
    """Of a request of ``PROMPT`` tokens after passes, by the tokens that they begin and end at."""
    profile = parse_profile(
        profile_document(prefill=CHANGE, decode=DECODE_CHANGE) | {"block_size": PAGE, "sub_block": SUB, "layers": {}},
        "test",
    )
    (sequence,), summaries = joined([320], KV_HEADS, DIM)
    slots = (sequence.table[:, None] * PAGE + torch.arange(PAGE)).flatten()[None].int()
    ledger, every = Ledger(1, 8), 3 * queries(320, HEADS, DIM)
    given = [profile], on(DEVICE if kernels else "cpu", {0: summaries}), slots.to(DEVICE if kernels else "cpu"), ledger
    attention: Any = TritonAttention(*given, HEADS) if kernels else TorchAttention(*given)
    rows = DenseRows(1, [profile.decode_from], ledger, torch.device(DEVICE))
    if kernels:
        ledger.price_steps([0], [each.attended for each in attention.step_prices()], HEADS, 1)
    for first, end in passes:
        decode = end - first == 1 and first >= PROMPT
        spans = Spans(["r"], [0], [end], [end - first], [prompt])
        attention.prepare(spans, decode)
        if decode and kernels:
            rows.stage(spans)
        tensors = on(DEVICE if kernels else "cpu", (every[first:end], sequence.keys, sequence.values))
        attention.attend(*tensors, LAYER, decode)
        attention.book()
        rows.book()
    return Account.unpack(ledger.pack("r"))


READ = [(0, 160), (160, PROMPT)]


def steps(first: int, end: int) -> list[tuple[int, int]]:
    return [(at, at + 1) for at in range(first, end)]


@pytest.mark.parametrize("kernels", [False, True])
def test_what_is_read_anew_counts_once(kernels: bool) -> None:
    alone = account(kernels, [*READ, *steps(300, 305)])
    assert alone.density(PREFILL)[0] < 0.9
    assert alone.density(DECODE)[0] < 0.9
    # The last step ran ahead of a request that was taken back, and is dropped: all that follows was attended before.
    again = account(kernels, [*READ, *steps(300, 303), (288, 302), *steps(302, 305)])
    assert np.array_equal(again.table, alone.table)
    # Whatever the prefix cache lost meanwhile.
    lost = account(kernels, [*READ, *steps(300, 302), (0, 128), (128, 302), *steps(302, 305)])
    assert np.array_equal(lost.table, alone.table)
    # Calls are told as they were made.
    assert (again.calls, lost.calls) == (alone.calls + 1 + (not kernels), alone.calls + 2)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_token_that_is_first_attended_when_its_request_is_read_anew_counts_as_generated(kernels: bool) -> None:
    alone = account(kernels, [*READ, *steps(300, 305)])
    found = account(kernels, [*READ, *steps(300, 301), (288, 302), *steps(302, 305)])
    assert np.array_equal(found.table[:, PREFILL], alone.table[:, PREFILL])
    assert found.table[:, DECODE, 1] == pytest.approx(alone.table[:, DECODE, 1])
    assert abs(found.density(DECODE) - alone.density(DECODE)).max() < 0.1


@pytest.mark.parametrize("kernels", [False, True])
def test_coverage_of_what_is_read_anew_was_measured_before(kernels: bool) -> None:
    asked = Prompt(PROMPT, measured=True)
    alone = account(kernels, READ, asked)
    assert alone.measured_rows == 2 * MEASURED_ROWS
    assert 0.2 < alone.measured < 0.99
    again = account(kernels, [*READ, (0, 128), (128, PROMPT)], asked)
    assert (again.measured_rows, again.measured) == (alone.measured_rows, alone.measured)
    # Of a pass that counts in part, rows are spread over that part.
    partly = account(kernels, [(0, 160), (0, 296), (0, PROMPT)], asked)
    assert partly.measured_rows == 2 * MEASURED_ROWS + PROMPT - 296


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("markers", [None, (5, 6)])
def test_reasoning_is_read_anew_with_all_its_attention(kernels: bool, markers: tuple[int, int] | None) -> None:
    # More tokens are read than were attended before, so that something of this pass is told of.
    passes = [*READ, (0, 320)]
    assert account(kernels, passes).density(DECODE)[0] < 0.95
    held = Prompt(PROMPT, reasoning=markers is None, markers=markers)
    assert account(kernels, passes, held).density(DECODE)[0] == 1.0
