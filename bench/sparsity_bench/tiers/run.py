"""Time to first token of each tier at several prompt lengths, against the dense tier in the same run."""

from __future__ import annotations

import itertools
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_router.embedded.state import Running
from sparsity_router.prompts.corpus import technical_text
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_rpc.tiers import Tier
from sparsity_rpc.tls import open_channel
from sparsity_serving.benchmark import Row, judged

DENSE = "dense"
# What this benchmark is asked for: ratio to dense by tier and prompt length.
GOALS = {
    ("aggressive", 7500): 1.3,
    ("moderate", 7500): 1.1,
    ("aggressive", 1024): 0.97,
    ("moderate", 1024): 0.97,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        first: seconds to the first token, at the client.
        per_token: seconds a token after the first.
        density: attended over causal pairs of the prompt.
        coverage: estimated share of softmax mass kept.
    """

    first: float
    per_token: float
    density: float
    coverage: float


def measure(
    running: Running, lengths: Sequence[int], repeats: int, new_tokens: int, say: Callable[[str], None]
) -> list[Row]:
    """Measures every tier at every length, taking turns so that drift of the machine meets all alike.

    Raises:
        EngineError: when a sparse tier answers without having pruned anything at the longest length.
    """
    tokens = ModelTokenizer(Path(running.model_path)).encode(technical_text(), special=False)
    fresh = _fresh_prompts(tokens)
    samples: dict[tuple[str, int], list[Sample]] = {}
    stubs = {}
    for tier, worker in running.workers.items():
        stubs[tier] = worker_pb2_grpc.WorkerServiceStub(open_channel(worker.address, None))
    for length in lengths:
        for repeat in range(repeats + 1):
            for tier, stub in stubs.items():
                sample = _one(stub, Tier[tier.upper()], next(fresh)[:length], new_tokens)
                # The first round warms caches and is not counted.
                if repeat:
                    samples.setdefault((tier, length), []).append(sample)
                    say(f"{tier} {length} tokens: first token after {sample.first:.2f} s, density {sample.density:.3f}")
    longest = max(lengths)
    for tier in stubs:
        if tier != DENSE and statistics.median(s.density for s in samples[tier, longest]) >= 1.0:
            raise EngineError(f"the {tier} tier attended everything at {longest} tokens; no speed-up is reported")
    return [row for length in lengths for row in _rows(samples, list(stubs), length)]


def _fresh_prompts(tokens: list[int]) -> Iterator[list[int]]:
    """Prompts that start at a different place each time, so that no prefix cache helps."""
    starts = range(0, len(tokens) - 8192, 611)
    for start in itertools.cycle(starts):
        yield tokens[start : start + 8192]


def _one(stub: worker_pb2_grpc.WorkerServiceStub, tier: Tier, prompt: list[int], new_tokens: int) -> Sample:
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=uuid.uuid4().hex,
        prompt=inference_pb2.TokenIds(ids=prompt),
        sampling=inference_pb2.SamplingParams(max_new_tokens=new_tokens, ignore_eos=True),
        tier=tier.wire,
        cache_salt=uuid.uuid4().hex,
    )
    started = time.perf_counter()
    first, last, produced, completion = 0.0, 0.0, 0, inference_pb2.Completion()
    for message in stub.Generate(request, timeout=600.0):
        if message.response.token_ids:
            last = time.perf_counter() - started
            first = first or last
            produced += len(message.response.token_ids)
        if message.response.HasField("completion"):
            completion = message.response.completion
    report = completion.sparsity
    per_token = (last - first) / (produced - 1) if produced > 1 else 0.0
    return Sample(first, per_token, report.prefill_density, report.coverage)


def _rows(samples: dict[tuple[str, int], list[Sample]], tiers: list[str], length: int) -> list[Row]:
    rows = []
    dense_first, dense_token = _medians(samples[DENSE, length])
    for tier in tiers:
        found = samples[tier, length]
        first, token = _medians(found)
        shape = f"{length} prompt tokens, batch 1, {len(found)} runs"
        if tier == DENSE:
            rows.append(Row(f"time to first token, {tier}", shape, first, "s"))
            rows.append(Row(f"time per output token, {tier}", shape, token, "s"))
            continue
        density = statistics.median(s.density for s in found)
        coverage = statistics.median(s.coverage for s in found)
        where = f"{shape}, density {density:.3f}, coverage {coverage:.3f}"
        ratio = dense_first / first
        row = Row(f"time to first token, {tier}", where, first, "s", "dense tier", dense_first, ratio)
        bound = GOALS.get((tier, length))
        rows.append(judged(row, f"ratio >= {bound:g}", met=ratio >= bound) if bound else row)
        rows.append(
            Row(f"time per output token, {tier}", where, token, "s", "dense tier", dense_token, dense_token / token)
        )
    return rows


def _medians(samples: list[Sample]) -> tuple[float, float]:
    return statistics.median(s.first for s in samples), statistics.median(s.per_token for s in samples)
