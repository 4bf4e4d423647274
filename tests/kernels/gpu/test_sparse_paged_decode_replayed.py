"""Decode from buffers that keep their place, as a CUDA graph replays it, beside decode from tensors made anew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sparse_kernels import PagedSequence, PageSummaries
from sparse_kernels.gpu.page_selection import MOST_BLOCKS
from sparsity_worker.plugin.accounts.ledger import Account, Ledger
from sparsity_worker.plugin.attention import Prompt, Spans
from sparsity_worker.plugin.triton_attention import TritonAttention
from sparsity_worker.profiles.profile import Profile, parse_profile
from sparsity_worker.profiles.served_tiers import attends_everything
from support.kernels.devices import DEVICE, EXACT, captured, on
from support.kernels.paging import PAGE, SUB, rms_ratio
from support.workers.profiles import profile_document

HEADS, KV_HEADS, DIM, CONTEXT, STEPS = 4, 2, 16, 256, 14
REASONING = range(4, 8)
LAYER: Any = SimpleNamespace(layer_id=0, scaling=DIM**-0.5, tp_q_head_num=HEADS)


def profile(**more: Any) -> Profile:
    small = {"block_size": PAGE, "sub_block": SUB}
    document = profile_document(
        prefill={"score": "sub_means", "query_tile": 32, "query_stride": 8},
        decode={"sparse_from": 60, "budget": 48, "sink": 16, "recent": 16, "score": "sub_pages"},
    )
    return parse_profile(document | small | more, "test")


class Pool:
    """A KV pool of one layer, and requests on shuffled pages of it; row 0 and page 0 are padding."""

    def __init__(self, requests: int) -> None:
        self.random = torch.Generator().manual_seed(0)
        pages = requests * CONTEXT // PAGE
        self.keys, self.values = torch.zeros(2, pages + 1, PAGE, KV_HEADS, DIM, device=DEVICE)
        order = torch.randperm(pages, generator=self.random) + 1
        slots = order.view(requests, -1)[:, :, None] * PAGE + torch.arange(PAGE)
        self.req_to_token = torch.zeros(requests + 1, CONTEXT, dtype=torch.int32, device=DEVICE)
        self.req_to_token[1:] = slots.flatten(1)

    def normal(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self.random).to(DEVICE)

    def write(self, row: int, first: int, count: int) -> None:
        """New keys and values of a request."""
        at = self.req_to_token[row, first : first + count].long()
        for cache in (self.keys, self.values):
            cache.view(-1, KV_HEADS, DIM)[at] = self.normal(count, KV_HEADS, DIM)


@pytest.mark.parametrize("dense_layers", [[], [0]])
def test_pages_are_summarized_where_a_layer_is_sparse_and_left_alone_where_it_is_dense(dense_layers: list[int]) -> None:
    pool, own = Pool(2), profile(dense_layers=dense_layers)
    summaries = PageSummaries(pool.keys.shape[0], PAGE, KV_HEADS, DIM, SUB, DEVICE)
    attention = TritonAttention([own], {0: summaries}, pool.req_to_token, Ledger(1, 8), HEADS)
    attention.allocate(2)
    lengths = [31, 100]
    for number, length in enumerate(lengths):
        pool.write(number + 1, 0, length)
    spans = Spans(["a", "b"], [1, 2], lengths, lengths, [Prompt(length) for length in lengths])
    attention.prepare(spans, decode=False)
    attention.attend(pool.normal(sum(lengths), HEADS, DIM), pool.keys, pool.values, LAYER, decode=False)
    attention.book()
    # Over the end of a page, in a reasoning span and out of it.
    for step in range(4):
        lengths = [length + 1 for length in lengths]
        for number, length in enumerate(lengths):
            pool.write(number + 1, length - 1, 1)
        spans = Spans(["a", "b"], [1, 2], lengths, [1, 1], [Prompt(1), Prompt(1, reasoning=step % 2 == 0)])
        attention.stage(spans, *on(DEVICE, (torch.tensor([1, 2]), torch.tensor(lengths))))
        attention.attend(pool.normal(2, HEADS, DIM), pool.keys, pool.values, LAYER, decode=True)
        attention.book()
        found, keys, values = on("cpu", (summaries, pool.keys, pool.values))
        for number, length in enumerate(lengths):
            table = pool.req_to_token[number + 1, :length:PAGE].long().cpu() // PAGE
            if dense_layers:
                assert found.stale[table].all()
                continue
            assert not found.stale[table].any()
            wanted = PageSummaries(pool.keys.shape[0], PAGE, KV_HEADS, DIM, SUB)
            wanted.refresh(PagedSequence(keys, values, table, length))
            for name in ("mean", "value_mean", "sub_mean", "sub_count"):
                torch.testing.assert_close(getattr(found, name)[table], getattr(wanted, name)[table], msg=name)


def test_replayed_rows_of_several_tiers_attend_as_each_tier_alone_would() -> None:
    """Which tier a row is of changes from step to step, as requests come and go."""
    pool, own = Pool(3), profile()
    other = replace(own, tier="moderate", decode=replace(own.decode, budget=96, recent=48, sparse_from=100))
    profiles, lengths = [attends_everything(1, PAGE, SUB), other, own], [70, 120, 130]

    def made(*of: Profile) -> TritonAttention:
        summaries = {0: PageSummaries(pool.keys.shape[0], PAGE, KV_HEADS, DIM, SUB, DEVICE)}
        return TritonAttention(of, summaries, pool.req_to_token, Ledger(1, 8), HEADS)

    shared, alone = made(*profiles), [made(each) for each in profiles]
    shared.allocate(4)
    for number, length in enumerate(lengths):
        pool.write(number + 1, 0, length)
    q, replay = pool.normal(sum(lengths), HEADS, DIM), None
    for each, tier in ((shared, 2), *zip(alone, (0, 0, 0), strict=True)):
        # Of the sparsest: so each page is summarized, and every tier can be asked for each.
        spans = Spans(["a", "b", "c"], [1, 2, 3], lengths, lengths, [Prompt(length, tier=tier) for length in lengths])
        each.prepare(spans, decode=False)
        each.attend(q, pool.keys, pool.values, LAYER, decode=False)
        each.book()
    for tiers in ([2, 1, 0], [0, 2, 1], [2, 2, 2], [0, 0, 0]):
        lengths = [length + 1 for length in lengths]
        for number, length in enumerate(lengths):
            pool.write(number + 1, length - 1, 1)
        q, there = pool.normal(4, HEADS, DIM), on(DEVICE, (torch.tensor([1, 2, 3, 0]), torch.tensor([*lengths, 1])))
        prompts = [Prompt(1, tier=tier) for tier in tiers]
        spans = Spans(["a", "b", "c"], [1, 2, 3], lengths, [1, 1, 1], prompts)
        shared.stage(spans, *there)
        if replay is None:
            replay = captured(lambda q: shared.attend(q, pool.keys, pool.values, LAYER, decode=True), q)
        found = on("cpu", replay(q))
        shared.book()
        shared.prepare(spans, decode=True)
        assert rms_ratio(on("cpu", shared.attend(q[:3], pool.keys, pool.values, LAYER, decode=True)), found[:3]) < EXACT
        shared.book()
        for each in alone:
            each.prepare(spans._replace(prompts=[Prompt(1)] * 3), decode=True)
        for row, tier in enumerate(tiers):
            wanted = on("cpu", alone[tier].attend(q[:3], pool.keys, pool.values, LAYER, decode=True))
            assert rms_ratio(found[row], wanted[row]) < EXACT, (tiers, row)
        for each in alone:
            each.book()
    spent = [prices.attended(np.array([131]), np.array([False]))[0, 0] for prices in shared.step_prices()]
    assert spent == [131, 96 - 13, 48 - 13]


def test_contexts_of_more_blocks_than_decode_chooses_from_are_refused() -> None:
    summaries = {0: PageSummaries(2, PAGE, KV_HEADS, DIM, SUB)}
    pool = torch.zeros(1, (MOST_BLOCKS + 1) * PAGE, dtype=torch.int32)
    with pytest.raises(ValueError, match="block_size: contexts of 16385 blocks"):
        TritonAttention([profile()], summaries, pool, Ledger(1, 8), HEADS)


def test_replayed_decode_equals_eager_while_lengths_grow() -> None:
    pool, own = Pool(3), profile()
    lengths, rids = [20, 55, 130], ["a", "b", "c"]
    attentions, ledgers = [], []
    for _ in range(2):
        summaries = {0: PageSummaries(pool.keys.shape[0], PAGE, KV_HEADS, DIM, SUB, DEVICE)}
        ledgers.append(Ledger(1, 8))
        attentions.append(TritonAttention([own], summaries, pool.req_to_token, ledgers[-1], HEADS))
    eager, replayed = attentions
    replayed.allocate(4)
    replay = None
    for number, length in enumerate(lengths):
        pool.write(number + 1, 0, length)
    for attention in attentions:
        spans = Spans(rids, [1, 2, 3], lengths, lengths, [Prompt(length) for length in lengths])
        attention.prepare(spans, decode=False)
        attention.attend(pool.normal(sum(lengths), HEADS, DIM), pool.keys, pool.values, LAYER, decode=False)
        attention.book()
    for step in range(STEPS):
        lengths = [length + 1 for length in lengths]
        for number, length in enumerate(lengths):
            pool.write(number + 1, length - 1, 1)
        # One of them reasons for a while.
        prompts = [Prompt(1), Prompt(1), Prompt(1, reasoning=step in REASONING)]
        spans = Spans(rids, [1, 2, 3], lengths, [1, 1, 1], prompts)
        q = pool.normal(4, HEADS, DIM)
        eager.prepare(spans, decode=True)
        wanted = eager.attend(q[:3], pool.keys, pool.values, LAYER, decode=True)
        # The fourth row is padding.
        replayed.stage(spans, *on(DEVICE, (torch.tensor([1, 2, 3, 0]), torch.tensor([*lengths, 1]))))
        if replay is None:
            replay = captured(lambda q: replayed.attend(q, pool.keys, pool.values, LAYER, decode=True), q)
        found, wanted = on("cpu", (replay(q), wanted))
        assert rms_ratio(found[:3], wanted) < EXACT, step
        assert torch.isfinite(found).all()
        for attention in attentions:
            attention.book()
    for rid in rids:
        ours, theirs = (Account.unpack(ledger.pack(rid)) for ledger in ledgers)
        assert (ours.table == theirs.table).all()
    # What a step of the longest is priced at.
    contexts, reasoned = 131 + np.arange(STEPS), np.isin(np.arange(STEPS), REASONING)
    attended = np.where(reasoned, contexts, 48 - (-contexts % PAGE))
    (prices,) = replayed.step_prices()
    assert (prices.attended(contexts, reasoned)[0] == attended).all()
