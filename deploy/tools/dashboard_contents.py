"""What the Grafana dashboards show."""

from __future__ import annotations

from dashboard_model import RATE, Dashboard, Panel, mean, quantile, rate, saved_share

_DECIDED = "sparsity_router_decisions_total"
FIRST, EACH = "gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"
COVERAGE = "sparsity_attention_coverage"
# Workers serve these metrics too, without a domain.
ROUTER = 'sparsity_domain!=""'
SPARSE = f'{ROUTER},sparsity_tier=~"moderate|aggressive"'
ONE = 'sparsity_domain=~"$domain"'
WORKER = 'sparsity_tier=~"$tier"'
TIER = "{{sparsity_tier}}"
DOMAIN = "{{sparsity_domain}}"


def _once(metric: str) -> str:
    """What a worker tells at each of its tiers, and all of them share."""
    return f"max by (instance) ({metric}{{{WORKER}}})"


DASHBOARDS_OF = (
    Dashboard(
        "overview",
        "sparsity-router / overview",
        "What the routers decide, what it saves, and whether every promise holds.",
        (
            Panel(
                "Broken promises",
                {"answered with less attention than policy gave": "sum(sparsity_router_policy_violations_total)"},
                what="Requests that were answered with less attention than policy gave. Must be 0 for ever.",
                kind="stat",
            ),
            Panel("Requests by tier", {TIER: rate(_DECIDED, "sparsity_tier")}, "reqps", stack=True),
            Panel("Requests by domain", {DOMAIN: rate(_DECIDED, "sparsity_domain")}, "reqps", stack=True),
            Panel("Why", {"{{sparsity_reason}}": rate(_DECIDED, "sparsity_reason")}, "reqps", stack=True),
            Panel(
                "Attention saved",
                {DOMAIN: saved_share("sparsity_domain")},
                "percentunit",
                "Share of the floating-point operations of dense attention that was not computed.",
                most=1,
            ),
            Panel(
                "GPU time saved",
                {DOMAIN: rate("sparsity_gpu_time_saved_seconds_total", "sparsity_domain")},
                "short",
                "GPU seconds a second, estimated at the speed of dense attention.",
                stack=True,
            ),
            Panel("Time to first token, 95th percentile", {TIER: quantile(0.95, FIRST, "sparsity_tier", ROUTER)}, "s"),
            Panel("Time per output token, 95th percentile", {TIER: quantile(0.95, EACH, "sparsity_tier", ROUTER)}, "s"),
            Panel(
                "Coverage of sparse answers",
                {DOMAIN: mean(COVERAGE, "sparsity_domain", SPARSE)},
                "percentunit",
                "Estimated share of the softmax mass that is kept, the mean.",
                most=1,
            ),
            Panel("Waiting", {TIER: "sum by (sparsity_tier) (sparsity_router_waiting)"}),
            Panel(
                "Workers",
                {
                    "{{sparsity_tier}} {{sparsity_worker_state}}": "max by (sparsity_tier, sparsity_worker_state)"
                    " (sparsity_router_workers) > 0"
                },
                what="As the router that sees the most of them sees them.",
                stack=True,
            ),
            Panel(
                "Refused and failed",
                {"{{rpc_grpc_status_code}}": rate("sparsity_rpc_errors_total", "rpc_grpc_status_code")},
                "reqps",
                stack=True,
            ),
        ),
    ),
    Dashboard(
        "domain",
        "sparsity-router / domain",
        "One domain: its tiers, times, attention and savings.",
        (
            Panel("Requests by tier", {TIER: rate(_DECIDED, "sparsity_tier", ONE)}, "reqps", stack=True),
            Panel("Why", {"{{sparsity_reason}}": rate(_DECIDED, "sparsity_reason", ONE)}, "reqps", stack=True),
            Panel(
                "Tokens",
                {"{{sparsity_token_kind}}": rate("sparsity_tokens_total", "sparsity_token_kind", ONE)},
                what="Tokens a second: of prompts, of those from the prefix cache, and new.",
            ),
            Panel(
                "Time to first token",
                {
                    f"median {TIER}": quantile(0.5, FIRST, "sparsity_tier", ONE),
                    f"95th {TIER}": quantile(0.95, FIRST, "sparsity_tier", ONE),
                },
                "s",
            ),
            Panel(
                "Time per output token",
                {
                    f"median {TIER}": quantile(0.5, EACH, "sparsity_tier", ONE),
                    f"95th {TIER}": quantile(0.95, EACH, "sparsity_tier", ONE),
                },
                "s",
            ),
            Panel(
                "Whole request, 95th percentile",
                {TIER: quantile(0.95, "gen_ai_server_request_duration_seconds", "sparsity_tier", ONE)},
                "s",
            ),
            Panel(
                "Density",
                {
                    f"prefill {TIER}": mean("sparsity_attention_density_prefill", "sparsity_tier", ONE),
                    f"decode {TIER}": mean("sparsity_attention_density_decode", "sparsity_tier", ONE),
                },
                "percentunit",
                "Attended over causal pairs, the mean.",
                most=1,
            ),
            Panel("Coverage", {TIER: mean(COVERAGE, "sparsity_tier", ONE)}, "percentunit", most=1),
            Panel("Attention saved", {TIER: saved_share("sparsity_tier", ONE)}, "percentunit", most=1),
            Panel(
                "KV reads",
                {
                    f"read {TIER}": rate("sparsity_attention_kv_read_bytes_total", "sparsity_tier", ONE),
                    f"saved {TIER}": rate("sparsity_attention_kv_read_saved_bytes_total", "sparsity_tier", ONE),
                },
                "Bps",
            ),
            Panel(
                "GPU time saved",
                {TIER: rate("sparsity_gpu_time_saved_seconds_total", "sparsity_tier", ONE)},
                stack=True,
            ),
            Panel(
                "Broken promises",
                {DOMAIN: f"sum by (sparsity_domain) (sparsity_router_policy_violations_total{{{ONE}}})"},
                kind="stat",
            ),
        ),
        {"domain": (_DECIDED, "sparsity_domain")},
    ),
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
                        _DECIDED,
                        "sparsity_reason",
                        'sparsity_reason=~"FLAGGED|UNKNOWN_DOMAIN|STALE_POLICY|CLASSIFIER_FAILED|TIER_UNAVAILABLE'
                        '|MISSING_TELEMETRY|KILL_SWITCH"',
                    )
                },
                "reqps",
                stack=True,
            ),
            Panel(
                "High risk, by tier",
                {TIER: rate(_DECIDED, "sparsity_tier", 'sparsity_risk="high"')},
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
