"""A ragged prefill batch through the worker's kernels, beside the CPU's attention of each request."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sparse_kernels import PageSummaries
from sparsity_worker.plugin.accounts.ledger import Account, Ledger
from sparsity_worker.plugin.accounts.shares import PREFILL
from sparsity_worker.plugin.attention import Prompt, Spans
from sparsity_worker.plugin.torch_attention import TorchAttention
from sparsity_worker.plugin.triton_attention import TritonAttention
from sparsity_worker.profiles.profile import parse_profile
from sparsity_worker.profiles.served_tiers import attends_everything
from support.kernels.devices import DEVICE, EXACT, on
from support.kernels.paging import PAGE, SUB, joined, queries, rms_ratio
from support.workers.profiles import profile_document

HEADS, KV_HEADS, DIM = 4, 2, 16
# Prefix, new tokens and the whole prompt of each request; the second is short, the third has chunks to come.
REQUESTS = [(0, 300, 300), (0, 30, 30), (200, 100, 600)]
RIDS = ["long", "short", "chunk"]


# Of the requests, each one's tier: of one, of two that differ in tiles and what they keep, beside a dense one.
@pytest.mark.parametrize(
    ("score", "tiers"),
    [
        ("sub_means", (0, 0, 0)),
        ("sampled_rows", (0, 0, 0)),
        ("sub_means", (2, 0, 1)),
        ("sub_means", (0, 1, 2)),
        ("sampled_rows", (1, 0, 2)),
    ],
)
def test_a_batch_is_attended_and_booked_as_each_request_alone(score: str, tiers: tuple[int, ...]) -> None:
    change = {"score": score, "query_tile": 32, "window": 16, "sink": 16, "sparse_from": 60, "peak": 8.0}
    document = profile_document(prefill=change | {"mean_blocks": 2}) | {"block_size": PAGE, "sub_block": SUB}
    own = parse_profile(document | {"layers": {1: {"thresholds": [0.4, 0.9]}}}, "test")
    profiles = [own]
    if any(tiers):
        other = replace(own.prefill, query_tile=64, threshold=0.9, window=48, sparse_from=40)
        moderate = replace(own, tier="moderate", prefill=other, dense_layers={1}, layers={})
        profiles = [attends_everything(2, PAGE, SUB), moderate, own]
    sequences, _ = joined([prefix + new for prefix, new, _ in REQUESTS], KV_HEADS, DIM)
    keys, values = sequences[0].keys, sequences[0].values
    slots = torch.zeros(len(REQUESTS), 304, dtype=torch.int32)
    for row, sequence in zip(slots, sequences, strict=True):
        row[: sequence.table.numel() * PAGE] = (sequence.table[:, None] * PAGE + torch.arange(PAGE)).flatten()
    lengths, new = [prefix + count for prefix, count, _ in REQUESTS], [count for _, count, _ in REQUESTS]
    prompts = [Prompt(whole, measured=True, tier=tier) for (_, _, whole), tier in zip(REQUESTS, tiers, strict=True)]
    spans = Spans(RIDS, [0, 1, 2], lengths, new, prompts)

    def attended(device: str, kernels: bool) -> tuple[list[torch.Tensor], list[Account]]:
        layers, ledger = {}, Ledger(2, 8)
        for number in range(2):
            layers[number] = PageSummaries(keys.shape[0], PAGE, KV_HEADS, DIM, SUB)
            # Earlier chunks have summarized the pages of the prefixes.
            for sequence in sequences:
                layers[number].refresh(sequence)
        given = profiles, on(device, layers), slots.to(device), ledger
        attention: Any = TritonAttention(*given, HEADS) if kernels else TorchAttention(*given)
        attention.prepare(spans, decode=False)
        out = []
        for number in range(2):
            layer: Any = SimpleNamespace(layer_id=number, scaling=DIM**-0.5, tp_q_head_num=HEADS)
            q = 3 * queries(sum(new), HEADS, DIM, seed=number)
            out.append(on("cpu", attention.attend(*on(device, (q, keys, values)), layer, decode=False)))
        attention.book()
        return out, [Account.unpack(ledger.pack(rid)) for rid in RIDS]

    (wanted_out, wanted_accounts), (found_out, found_accounts) = attended("cpu", False), attended(DEVICE, True)
    for found, wanted in zip(found_out, wanted_out, strict=True):
        assert rms_ratio(found, wanted) < EXACT
    for account, other in zip(found_accounts, wanted_accounts, strict=True):
        tables = (torch.tensor(each.table[:, PREFILL]) for each in (account, other))
        assert torch.allclose(*tables, rtol=1e-5, atol=1e-2)
        assert abs(account.measured - other.measured) < 1e-4
        assert account.measured_rows == other.measured_rows
    for number, tier in enumerate(tiers):
        density = found_accounts[number].density(PREFILL)
        if number == 1 or profiles[tier].dense:
            assert density.min() == 1
        else:
            assert density[0] < 0.95
            assert (density[1] == 1) == (profiles[tier].tier == "moderate")
