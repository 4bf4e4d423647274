"""What the dashboards of workers and of quality show."""

from __future__ import annotations

from dashboard_contents import COVERAGE, DECIDED, DOMAIN, SPARSE, TIER
from dashboard_model import RATE, Dashboard, Panel, mean, quantile, rate

WORKER = 'sparsity_tier=~"$tier"'


def _once(metric: str) -> str:
    """What a worker tells at each of its tiers, and all of them share."""
    return f"max by (instance) ({metric}{{{WORKER}}})"


OF_WORKERS = (
    Dashboard(
        "worker",
        "sparsity-router / worker",
        "The pools: load, room, kernels, and how routers see them.",
        (
            Panel(
                "Requests in flight",
                {
                    f"{{{{instance}}}} {TIER}": f"sparsity_worker_requests{{{WORKER}}}",
                    "limit {{instance}}": _once("sparsity_worker_requests_limit"),
                },
            ),
            Panel("Tokens still to work on", {f"{{{{instance}}}} {TIER}": f"sparsity_worker_outstanding{{{WORKER}}}"}),
            Panel("KV cache in use", {"{{instance}}": _once("sparsity_worker_kv_use")}, "percentunit", most=1),
            Panel("Wanted by tier", {TIER: rate("sparsity_router_wanted_total", "sparsity_tier", WORKER)}, "reqps"),
            Panel("Waiting by tier", {TIER: f"sum by (sparsity_tier) (sparsity_router_waiting{{{WORKER}}})"}),
            Panel(
                "Kernel calls",
                {
                    "{{sparsity_tier}} {{sparsity_kernel_kind}}": rate(
                        "sparsity_worker_kernel_calls_total", "sparsity_tier, sparsity_kernel_kind", WORKER
                    )
                },
                "ops",
                "Sparse ones pruned something.",
            ),
            Panel(
                "Density by third of the layers",
                {
                    "{{sparsity_tier}} {{sparsity_layers}}": mean(
                        "sparsity_worker_layer_density", "sparsity_tier, sparsity_layers", WORKER
                    )
                },
                "percentunit",
                most=1,
            ),
            Panel(
                "Cancelled and failed",
                {"{{instance}}": rate("sparsity_worker_aborted_total", "instance", WORKER)},
                "reqps",
            ),
            Panel("Draining", {"{{instance}}": _once("sparsity_worker_draining")}),
            Panel(
                "In flight, as routers see it",
                {"{{sparsity_worker_id}}": f"sum by (sparsity_worker_id) (sparsity_router_in_flight{{{WORKER}}})"},
            ),
            Panel(
                "Breakers that are open",
                {
                    "{{sparsity_worker_id}}": "sum by (sparsity_worker_id) (max by (instance, sparsity_worker_id)"
                    f" (sparsity_router_breaker_open{{{WORKER}}}))"
                },
                what="At so many routers; a worker of several tiers has one breaker at each.",
            ),
            Panel("Sent once more", {"retries": f"sum(rate(sparsity_router_retries_total{RATE}))"}, "reqps"),
        ),
        {"tier": ("sparsity_worker_requests", "sparsity_tier")},
    ),
    Dashboard(
        "quality",
        "sparsity-router / quality",
        "What sparse attention may cost: coverage, fallbacks, policies that are behind.",
        (
            Panel(
                "Coverage, the lowest tenth",
                {DOMAIN: quantile(0.1, COVERAGE, "sparsity_domain", SPARSE)},
                "percentunit",
                "A tenth of the sparse answers keep less of the softmax mass than this, by the estimate.",
                most=1,
            ),
            Panel(
                "Coverage by third of the layers",
                {
                    "{{sparsity_tier}} {{sparsity_layers}}": mean(
                        "sparsity_worker_layer_coverage", "sparsity_tier, sparsity_layers"
                    )
                },
                "percentunit",
                most=1,
            ),
            Panel(
                "Density of prompts",
                {
                    f"median {TIER}": quantile(0.5, "sparsity_attention_density_prefill", "sparsity_tier", SPARSE),
                    f"lowest tenth {TIER}": quantile(
                        0.1, "sparsity_attention_density_prefill", "sparsity_tier", SPARSE
                    ),
                },
                "percentunit",
                most=1,
            ),
            Panel(
                "In doubt, so dense",
                {
                    "{{sparsity_reason}}": rate(
                        DECIDED,
                        "sparsity_reason",
                        'sparsity_reason=~"FLAGGED|UNKNOWN_DOMAIN|STALE_POLICY|CLASSIFIER_FAILED|LOW_CONFIDENCE'
                        '|SCAN_TRUNCATED|TIER_UNAVAILABLE|MISSING_TELEMETRY|KILL_SWITCH"',
                    )
                },
                "reqps",
                stack=True,
            ),
            Panel(
                "High risk, by tier",
                {TIER: rate(DECIDED, "sparsity_tier", 'sparsity_risk="high"')},
                "reqps",
                "Nothing but dense belongs here.",
            ),
            Panel(
                "Time to decide, 95th percentile",
                {
                    part: quantile(0.95, f"sparsity_router_{part}_duration_seconds")
                    for part in ("classify", "scan", "detect")
                },
                "s",
            ),
            Panel("Policy revision", {"{{instance}}": "sparsity_policy_revision"}),
            Panel(
                "Policies are behind",
                {
                    "age {{instance}}": "sparsity_policy_age_seconds",
                    "lag {{instance}}": "sparsity_policy_lag_seconds",
                },
                "s",
            ),
            Panel(
                "Policies that are not as they should be",
                {
                    "left out {{instance}}": "sparsity_policy_rejected",
                    "unlike the folder {{instance}}": "sparsity_policy_drifted",
                },
            ),
            Panel(
                "Decisions that the log lost",
                {"{{instance}}": f"sum by (instance) (rate(sparsity_decision_log_dropped_total{RATE}))"},
                "reqps",
            ),
        ),
    ),
)
