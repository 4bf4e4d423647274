"""Ranks on as many GPUs as there are: what one answers and tells, several do. `make test-gpu` runs it.

It needs SGLang beside torch; on the CPU `test_real_engine.py` asks the same of two processes.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch

DEVICES = torch.cuda.device_count()
pytestmark = [
    pytest.mark.skipif(DEVICES < 2, reason="needs two GPUs"),
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="needs SGLang"),
    pytest.mark.xdist_group("devices"),
]
POSITIONS, NEW = 8192, 6
# By how much a density may differ: what is kept hangs on scores that are rounded.
APART = 0.02
# Gluon's kernels want 64 or 128 dimensions, and tiles of 128 queries.
TILE = {"prefill": {"query_tile": 128, "score": "sub_means"}, "decode": {"score": "sub_pages"}}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """By how many ranks answered: tokens and report of each prompt, at the sparse tier and at the dense one."""
    from sparsity.v1 import inference_pb2
    from support.tiny import tiny_weights
    from support.workers.engine import Worker
    from support.workers.profiles import profile_document

    folder = tmp_path_factory.mktemp("ranks")
    model: Path = tiny_weights(folder / "model", positions=POSITIONS, head_dim=64)
    draw = random.Random(3)
    prompts = [[draw.randrange(256) for _ in range(draw.randint(300, 6000))] for _ in range(16)]
    found = {}
    for ranks in (each for each in (1, 2, 4) if each <= DEVICES):
        worker = Worker(
            model, folder, f"ranks-{ranks}", "--device", "cuda", "--dtype", "bfloat16", "--tensor-parallel",
            str(ranks), "--chunked-prefill-tokens", "2048", "--max-total-tokens", "65536", "--measured-share", "0",
            documents=[profile_document(**TILE)], tiers="dense,aggressive",
        ).wait()  # fmt: skip
        try:
            found[ranks] = [
                worker.ask(prompt, NEW, salt=f"{number}", tier=tier)
                for tier in (inference_pb2.TIER_DENSE, inference_pb2.TIER_AGGRESSIVE)
                for number, prompt in enumerate(prompts)
            ]
        finally:
            assert worker.stop() == 0
    return found


def test_several_ranks_answer_and_tell_what_one_does(answers: dict[int, list[Any]]) -> None:
    alone, *_ = answers.values()
    pruned = 0
    for ranks, told in list(answers.items())[1:]:
        same = 0
        for own, other in zip(told, alone, strict=True):
            ours, theirs = own.completion.sparsity, other.completion.sparsity
            assert ours.kernel_calls == ranks * theirs.kernel_calls
            for mine, single in zip(ours.layers, theirs.layers, strict=True):
                assert mine.prefill_density == pytest.approx(single.prefill_density, abs=APART)
                assert mine.decode_density == pytest.approx(single.decode_density, abs=APART)
            pruned += ours.prefill_density < 0.9
            # Ranks round their partial sums each: of what follows a first difference nothing is alike.
            same += own.tokens[0] == other.tokens[0]
        assert same >= 0.9 * len(alone), f"{ranks} ranks: {same} of {len(alone)} first tokens alike"
    assert pruned
