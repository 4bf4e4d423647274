"""Tests that take longer than a moment, each file with its reason: `make check` leaves them out, unread.

`make test` starts them first, in this order: none is left for the end, when one of two processes has nothing to do.
"""

from __future__ import annotations

SLOW = {
    "tests/e2e/test_pools.py": "starts an engine for each tier, and one anew",
    "tests/e2e/test_system.py": "starts an engine, once for all tests",
    "tests/e2e/test_small_system.py": "starts an engine, once for all tests, and one anew",
    "tests/worker/test_real_engine.py": "starts two engines, one of two ranks in Triton's interpreter",
    "tests/worker/nodes/test_two_nodes.py": "starts an engine of two ranks three times: on one node, and twice on two",
    "tests/deploy/test_pods.py": "starts the chart's pods on this machine, engines among them",
    "tests/worker/answers/test_real_answers.py": "starts an engine",
    "tests/worker/starting/test_forking.py": "starts an engine, and kills its scheduler",
    "tests/worker/failing/test_failing_engine.py": "starts an engine three times: two fail, and one is refused",
    "tests/worker/failing/test_retraction.py": "starts an engine that retracts requests all the time",
    "tests/worker/test_stock_server.py": "starts a server of stock SGLang, and kills it",
    "tests/bench/test_policies.py": "a benchmark of three router processes over one Valkey, whole but small",
    "tests/bench/test_router.py": "a benchmark of routers under load, whole but small",
    "tests/first_run/test_fresh_clone.py": "installs what `make try` needs, and takes the first look around",
    "tests/first_run/test_first_minutes.py": "starts the service with echo workers: fresh, and for the tour",
    "tests/deploy/test_images.py": "installs what the images install",
    "tests/router/test_processes.py": "starts routers of several processes",
    "tests/deploy/test_chart.py": "renders the chart by every Helm, hundreds of times",
    "tests/worker/test_graph_calls.py": "runs SGLang's calls around CUDA graphs in Triton's interpreter",
    "tests/router/embedded/test_secured_store.py": "starts routers over stores that they cannot log in to",
    "tests/router/test_never_sparser.py": "tries thousands of requests against policies that change",
    "tests/kernels/test_block_sparse_prefill.py": "holds kernels to their references over hundreds of shapes",
    "tests/quality/test_workers.py": "runs the quality suite against workers that answer",
    "tests/cli/test_policy_cli.py": "starts the command line over and over, beside a router",
    "tests/router/services/test_hostile_policies.py": "waits for patterns and conditions that never end",
    "tests/router/services/test_policy_api.py": "starts a router and its store for each test",
    "tests/policies/risk/test_risk_data.py": "weighs every text that is shipped",
    "tests/deploy/test_policy_folder.py": "starts a router over a folder that is mounted as Kubernetes does",
    "tests/router/following/test_policy_follower.py": "takes stores away from routers, and waits until they are told",
    "tests/policies/test_confined.py": "starts processes, and ends them at their limits",
    "tests/kernels/test_hopper_kernels_compile.py": "compiles every Gluon kernel for Hopper",
    "tests/router/gateway/test_frameworks.py": "installs LangChain and LiteLLM once, and imports them each time",
    "tests/client/test_other_languages.py": "installs a compiler of TypeScript once, and compiles each time",
    "tests/deploy/test_scaling.py": "starts a router, and a Prometheus that reads its metrics",
    "tests/deploy/test_model.py": "downloads models of a hub that answers in odd ways",
    "tests/router/services/test_large_requests.py": "sends requests of many megabytes",
    "tests/router/fleet/test_worker_channels.py": "opens a thousand channels",
    "tests/router/test_ipv6.py": "starts routers of several processes at every kind of address",
    "tests/router/services/test_fleet_service.py": "starts several routers, and waits until they know of each other",
    "tests/cli/test_worker_doctor.py": "starts the command line over and over, once to time a model's layers",
    "tests/cli/test_check.py": "waits until policies are stale",
    "tests/router/models/test_document.py": "starts routers with documents of models that they refuse",
    "tests/router/test_readiness.py": "waits for workers to come, to go and to be proven",
    "tests/worker/test_warm_up.py": "counts the kernels that batches of every kind ask for",
    "tests/router/fleet/test_queue.py": "waits for room at workers, and in vain",
    "tests/router/prompts/test_domains.py": "starts the process of the embedding model, and ends it in every way",
    "tests/policies/storage/test_redis_tls.py": "starts Redis with certificates, passwords and Sentinels",
    "tests/chaos/test_planted.py": "scans long prompts thousands of times",
    "tests/policies/storage/test_redis_modes.py": "starts Redis under Sentinel and as a cluster, waits for a failover",
    "tests/quality/test_suite.py": "runs the quality suite, and kills one run",
    "tests/worker/test_tune.py": "times layers in a process of its own",
    "tests/router/callers/test_reloading.py": "waits for files to be read again",
    "tests/router/test_watchdog.py": "holds an event loop still",
    "tests/worker/test_indexer_tiers.py": "imports SGLang in processes of its own",
    "tests/kernels/test_gpu_kernels_compile.py": "compiles every Triton kernel for Hopper",
    "tests/bench/test_selection_report.py": "runs every selector over a model",
    "tests/quality/test_calibration.py": "calibrates profiles of a model",
    "tests/kernels/gpu": "runs Triton's kernels in its interpreter, an operation at a time",
}


# The first so many have several processes of some gigabytes each: one file after the other, whatever runs beside them.
ENGINES = 10


def rank(test: str) -> int:
    """Where a test stands in the order, by its node id."""
    file = test.partition("::")[0]
    return next((at for at, place in enumerate(SLOW) if file == place or file.startswith(f"{place}/")), len(SLOW))


def group(test: str) -> str:
    """What runs in one process, a test after the other, by its node id: a file, or all with engines."""
    return "engines" if rank(test) < ENGINES else test.partition("::")[0]


def why(test: str) -> str:
    """Why a test takes long, by its node id; empty where nobody says so."""
    return ([*SLOW.values(), ""])[rank(test)]
