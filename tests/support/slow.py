"""Tests that take longer than a moment, each file with its reason: `make check` leaves them out."""

from __future__ import annotations

SLOW = {
    "tests/bench/test_policies.py": "a benchmark of three router processes over one Valkey, whole but small",
    "tests/bench/test_router.py": "a benchmark of routers under load, whole but small",
    "tests/bench/test_selection_report.py": "runs every selector over a model",
    "tests/deploy/test_images.py": "installs what the images install",
    "tests/deploy/test_pods.py": "starts the chart's pods on this machine, engines among them",
    "tests/e2e/test_pools.py": "starts an engine for each tier",
    "tests/e2e/test_system.py": "starts an engine, once for all tests",
    "tests/first_run/test_first_minutes.py": "starts the service with echo workers: fresh, and for the tour",
    "tests/kernels/gpu": "runs Triton's kernels in its interpreter, an operation at a time",
    "tests/kernels/test_gpu_kernels_compile.py": "compiles every Triton kernel for Hopper",
    "tests/kernels/test_hopper_kernels_compile.py": "compiles every Gluon kernel for Hopper",
    "tests/policies/storage/test_redis_modes.py": "starts Redis under Sentinel and as a cluster, waits for a failover",
    "tests/quality/test_calibration.py": "calibrates profiles of a model",
    "tests/quality/test_suite.py": "runs the quality suite, and kills one run",
    "tests/router/gateway/test_frameworks.py": "installs LangChain and LiteLLM once, and imports them each time",
    "tests/router/prompts/test_domains.py": "starts the process of the embedding model, and ends it in every way",
    "tests/router/services/test_hostile_policies.py": "waits for patterns and conditions that never end",
    "tests/router/decisions/test_never_sparser.py": "tries thousands of requests against policies that change",
    "tests/router/test_processes.py": "starts routers of several processes",
    "tests/worker/test_graph_calls.py": "runs SGLang's calls around CUDA graphs in Triton's interpreter",
    "tests/worker/test_indexer_tiers.py": "imports SGLang in processes of its own",
    "tests/worker/test_real_engine.py": "starts two engines, one of two ranks in Triton's interpreter",
    "tests/worker/answers/test_real_answers.py": "starts an engine",
    "tests/worker/test_tune.py": "times layers in a process of its own",
}


def why(test: str) -> str:
    """Why a test takes long, by its node id; empty where nobody says so."""
    file = test.partition("::")[0]
    return next((reason for place, reason in SLOW.items() if file == place or file.startswith(f"{place}/")), "")
