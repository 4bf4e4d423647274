"""What a worker says of itself, and whether a request at each of its tiers shows it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Tier
from sparsity_router.fleet.capabilities import by_tier
from sparsity_router.fleet.proof import start_fault
from sparsity_serving.access.lease_keys import LeaseKeys
from sparsity_serving.access.leases import sign
from sparsity_serving.engines import SGLANG, engine_of

from sparsity_cli.console import coverage, tier_word

# A dense request, and tokens that are decoded.
_SHORT, _NEW = 64, 4


def described(own: worker_pb2.GetCapabilitiesResponse) -> Iterator[tuple[str, str]]:
    """What holds at every tier: lines by name."""
    engine, tiers = own.engine, by_tier(own)
    words = ", ".join(tier.word for tier in tiers) or "no"
    yield "worker", f"{own.worker_id}, {words} tier{'s' * (len(tiers) > 1)}"
    cache = f"{own.kv_capacity_tokens} in the KV cache" if own.kv_capacity_tokens else "no KV cache"
    yield "model", f"{own.model}: {own.context_length} tokens of context, {cache}"
    if engine_of(own) != SGLANG:
        yield "engine", f"{engine.name}, which runs no model"
        return
    ranks = f"{engine.tensor_parallel} x " if engine.tensor_parallel > 1 else ""
    graphs = "on" if engine.cuda_graphs else "off"
    yield (
        "engine",
        f"SGLang {own.engine_version} on {ranks}{engine.device}, {engine.dtype}, pages of {engine.page_size} tokens,"
        f" CUDA graphs {graphs}",
    )
    kernels = f", {engine.kernels} kernels" if engine.kernels else ""
    profiles = ", ".join(dict.fromkeys(at.profile for at in tiers.values()))
    yield "backend", f"{own.backend}{kernels}, profile{'s' * (len(tiers) > 1)} {profiles}"
    if engine.summary_bytes and set(tiers) - {Tier.DENSE}:
        yield "summaries", f"{engine.summary_bytes / 2**20:.1f} MiB beside the KV cache{_worth(own)}"


def described_at(own: worker_pb2.GetCapabilitiesResponse, at: worker_pb2.TierCapabilities) -> Iterator[tuple[str, str]]:
    """What holds at one tier: lines by name."""
    if engine_of(own) != SGLANG:
        return
    if at.tier != inference_pb2.TIER_DENSE:
        yield "sparse", f"from {at.sparse_from} prompt tokens"
        if at.crossover:
            yield "crossover", at.crossover
        markers = " ... ".join(own.reasoning_markers) or "no markers: answers held dense as reasoning decode densely"
        yield "reasoning", markers if at.dense_reasoning else "cannot decode densely: such requests go to denser tiers"
    proof = at.proof
    when = datetime.fromtimestamp(proof.time.ToNanoseconds() / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    yield (
        "start-up",
        f"{proof.prompt_tokens} tokens at {when}: density {proof.density:.3f},"
        f" {proof.sparse_kernel_calls} of {proof.kernel_calls} kernel calls sparse",
    )


def _worth(own: worker_pb2.GetCapabilitiesResponse) -> str:
    """What the page summaries cost, in tokens that the KV cache could hold in their place."""
    if not own.engine.kv_bytes:
        return ""
    tokens = own.engine.summary_bytes * own.kv_capacity_tokens / own.engine.kv_bytes
    return f", the room of {tokens:.0f} tokens"


def one_answer(
    stub: Any,
    own: worker_pb2.GetCapabilitiesResponse,
    at: worker_pb2.TierCapabilities,
    keys: LeaseKeys | None,
    timeout: float,
) -> inference_pb2.Completion:
    """What the worker reports of a prompt of random tokens, long enough to be sparse where the tier is.

    Args:
        stub: of the worker.
        own: what it says of itself.
        at: what it says of the tier that it is asked at.
        keys: what the request is signed with; None leaves it unsigned.
        timeout: for the whole answer, seconds.

    Raises:
        grpc.RpcError: as the worker answers.
    """
    length = max(_SHORT, min(at.sparse_from, own.context_length - _NEW))
    draw = random.Random()
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=f"doctor-{uuid.uuid4().hex}",
        prompt=inference_pb2.TokenIds(ids=[draw.randrange(own.vocabulary_size) for _ in range(length)]),
        sampling=inference_pb2.SamplingParams(max_new_tokens=_NEW, ignore_eos=True),
        tier=at.tier,
        measure_coverage=True,
    )
    if keys is not None:
        request.lease.CopyFrom(sign(keys, request, own.worker_id, "doctor"))
    completion = inference_pb2.Completion()
    for message in stub.Generate(request, timeout=timeout):
        if message.response.HasField("completion"):
            completion = message.response.completion
    return completion


def judged(
    own: worker_pb2.GetCapabilitiesResponse,
    at: worker_pb2.TierCapabilities,
    completion: inference_pb2.Completion,
    seconds: float,
) -> tuple[str, str]:
    """The request in a line, and what is wrong with it, or with what the start-up proof shows of its tier."""
    usage, report = completion.usage, completion.sparsity
    first = usage.time_to_first_token.ToMilliseconds() / 1000
    told = f"{usage.prompt_tokens} tokens, {usage.completion_tokens} new in {seconds:.2f} s, first after {first:.2f} s"
    if not usage.completion_tokens:
        return told, "the stream ended without a completion"
    if not completion.HasField("sparsity"):
        return told, completion.unreported or "it does not report what it attended"
    told += (
        f"; density {report.prefill_density:.3f} prefill, {report.decode_density:.3f} decode,"
        f" coverage {coverage(report)},"
        f" {report.sparse_kernel_calls} of {report.kernel_calls} kernel calls sparse"
    )
    if report.tier > at.tier:
        return told, f"asked at {tier_word(at.tier)}, it reports {tier_word(report.tier)}"
    if at.tier == inference_pb2.TIER_DENSE:
        problem = "" if report.prefill_density == 1 else "a dense worker reports that it pruned"
    elif at.sparse_from > own.context_length - _NEW:
        problem = f"no prompt reaches the profile's sparse_from of {at.sparse_from}; choose another profile"
    elif not report.sparse_kernel_calls or report.prefill_density >= 1:
        problem = "nothing was pruned: the tier costs what dense costs; check the profile"
    else:
        problem = ""
    return told, problem or start_fault(at.proof, Tier(at.tier), attends=engine_of(own) == SGLANG)
