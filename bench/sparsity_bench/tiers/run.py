"""Time to first token of each tier by prompt length: beside the dense tier, and beside a worker of that tier alone."""

from __future__ import annotations

import itertools
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_router.embedded.state import Process, Running
from sparsity_router.prompts.corpus import technical_text
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import EngineError
from sparsity_rpc.tiers import Tier
from sparsity_rpc.tls import open_channel
from sparsity_serving.benchmark import Row, judged

from sparsity_bench.tiers.turns import Turns
from sparsity_bench.timing import Clock, cpu_clock

DENSE = "dense"
# What this benchmark is asked for: ratio to dense by tier and prompt length.
GOALS = {
    ("aggressive", 7500): 1.3,
    ("moderate", 7500): 1.1,
    ("aggressive", 1024): 0.97,
    ("moderate", 1024): 0.97,
}
# What a shared worker may take at this length, against a worker of the tier alone: 3 % more.
SHARED_TOKENS, SHARED_MOST = 7500, 1.03


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        first: seconds to the first token, at the client.
        processor: seconds of all cores that the worker took until then.
        per_token: seconds a token after the first.
        density: attended over causal pairs of the prompt.
        coverage: estimated share of softmax mass kept.
    """

    first: float
    processor: float
    per_token: float
    density: float
    coverage: float


class Pair(NamedTuple):
    """One prompt at a worker of its tier alone and at the shared one, which computed by turns."""

    own: Sample
    shared: Sample


def measure(
    running: Running,
    apart: Mapping[str, Process],
    lengths: Sequence[int],
    repeats: int,
    new_tokens: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures every tier at every length, taking turns so that drift of the machine meets all alike.

    Args:
        running: the service.
        apart: workers of one tier each, by tier, where the service has one worker of every tier.
        lengths: of prompts, tokens.
        repeats: rounds that count.
        new_tokens: that each request generates.
        say: gets a line for each request that counts.

    Raises:
        EngineError: when a sparse tier answers without having pruned anything at the longest length.
    """
    tokens = ModelTokenizer(Path(running.model_path)).encode(technical_text(), special=False)
    fresh = _fresh_prompts(tokens)
    samples: dict[tuple[str, int], list[Sample]] = {}
    pairs: dict[tuple[str, int], list[Pair]] = {}
    served = {tier: _Worker(worker) for tier, worker in running.workers.items()}
    alone = {tier: _Worker(worker) for tier, worker in apart.items()}
    for length in lengths:
        # The first round warms caches and is not counted.
        for repeat in range(repeats + 1):
            for tier, worker in served.items():
                sample = worker.ask(Tier[tier.upper()], next(fresh)[:length], new_tokens)
                if repeat:
                    samples.setdefault((tier, length), []).append(sample)
                    said = f"first token after {sample.first:.2f} s, density {sample.density:.3f}"
                    say(f"{tier} {length} tokens: {said}")
                if tier in alone:
                    pair = _pair(alone[tier], worker, Tier[tier.upper()], next(fresh)[:length], new_tokens)
                    if repeat:
                        pairs.setdefault((tier, length), []).append(pair)
                        took = (f"{each.first:.2f} s ({each.processor:.2f} s of processors)" for each in pair)
                        said = "alone {}, shared {}".format(*took)
                        say(f"{tier} {length} tokens, by turns: {said}")
    longest = max(lengths)
    for tier in served:
        if tier != DENSE and statistics.median(s.density for s in samples[tier, longest]) >= 1.0:
            raise EngineError(f"the {tier} tier attended everything at {longest} tokens; no speed-up is reported")
    tiers = list(served)
    return [row for length in lengths for row in (*tier_rows(samples, tiers, length), *shared_rows(pairs, length))]


def _fresh_prompts(tokens: list[int]) -> Iterator[list[int]]:
    """Prompts that start at a different place each time, so that no prefix cache helps."""
    starts = range(0, len(tokens) - 8192, 611)
    for start in itertools.cycle(starts):
        yield tokens[start : start + 8192]


class _Worker:
    """A worker that is asked, and the clock of its processes."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self._stub = worker_pb2_grpc.WorkerServiceStub(open_channel(process.address, None))
        self._processor = cpu_clock(process.pid)

    def ask(self, tier: Tier, prompt: list[int], new_tokens: int, clock: Clock = time.perf_counter) -> Sample:
        request = worker_pb2.WorkerServiceGenerateRequest(
            request_id=uuid.uuid4().hex,
            prompt=inference_pb2.TokenIds(ids=prompt),
            sampling=inference_pb2.SamplingParams(max_new_tokens=new_tokens, ignore_eos=True),
            tier=tier.wire,
            cache_salt=uuid.uuid4().hex,
        )
        before, started = self._processor(), clock()
        first, last, processor, produced, completion = 0.0, 0.0, 0.0, 0, inference_pb2.Completion()
        for message in self._stub.Generate(request, timeout=600.0):
            if message.response.token_ids:
                last = clock() - started
                first, processor = first or last, processor or self._processor() - before
                produced += len(message.response.token_ids)
            if message.response.HasField("completion"):
                completion = message.response.completion
        report = completion.sparsity
        per_token = (last - first) / (produced - 1) if produced > 1 else 0.0
        return Sample(first, processor, per_token, report.prefill_density, report.coverage)


def _pair(own: _Worker, shared: _Worker, tier: Tier, prompt: list[int], new_tokens: int) -> Pair:
    """Asks both at once, which compute by turns; each by the time of its own."""
    turns = Turns([own.pid, shared.pid])
    with turns.taken(), ThreadPoolExecutor(2) as asking:
        answers = [
            asking.submit(worker.ask, tier, prompt, new_tokens, partial(turns.seconds, place))
            for place, worker in enumerate((own, shared))
        ]
        return Pair(*(answer.result() for answer in answers))


def tier_rows(samples: Mapping[tuple[str, int], list[Sample]], tiers: Sequence[str], length: int) -> list[Row]:
    """The running service's tiers, beside its dense one."""
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


def shared_rows(pairs: Mapping[tuple[str, int], list[Pair]], length: int) -> list[Row]:
    """Each tier of a worker of all, beside a worker of that tier alone; none where there is no such worker.

    Each pair has a ratio; that of the row is their median, and the lowest and highest stand beside it: two workers that
    are started alike differ, too. Processor time tells what the engine does where others' work on the same cores
    stretches the time on the wall.
    """
    rows = []
    for (tier, at), found in pairs.items():
        if at != length:
            continue
        for what, of in (("time to first token", _first), ("processor time to first token", _processor)):
            own, shared = (statistics.median(of(pair[place]) for pair in found) for place in (0, 1))
            ratios = [of(pair.own) / of(pair.shared) for pair in found]
            ratio, spread = statistics.median(ratios), f"{min(ratios):.3f} to {max(ratios):.3f}"
            shape = f"{length} prompt tokens, batch 1, {len(found)} pairs by turns, ratio at the median of {spread}"
            row = Row(
                f"{what}, {tier}, in a worker of every tier", shape, shared, "s", "a worker of its own", own, ratio
            )
            met = ratio >= 1 / SHARED_MOST
            rows.append(judged(row, f"ratio >= {1 / SHARED_MOST:.2f}", met=met) if length == SHARED_TOKENS else row)
    return rows


_first, _processor = attrgetter("first"), attrgetter("processor")


def _medians(samples: list[Sample]) -> tuple[float, float]:
    return statistics.median(s.first for s in samples), statistics.median(s.per_token for s in samples)
