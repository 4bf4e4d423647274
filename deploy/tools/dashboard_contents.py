"""What the dashboards of requests show: all of them, and one domain."""

from __future__ import annotations

from dashboard_model import RATE, Dashboard, Panel, Row, mean, quantile, rate, saved_share

DECIDED = "sparsity_router_decisions_total"
FIRST, EACH = "gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"
WHOLE = "gen_ai_server_request_duration_seconds"
COVERAGE = "sparsity_attention_coverage"
# Workers serve these metrics too, without a domain.
ROUTER = 'sparsity_domain!=""'
SPARSE = f'{ROUTER},sparsity_tier=~"moderate|aggressive"'
ONE = 'sparsity_domain=~"$domain"'
TIER = "{{sparsity_tier}}"
DOMAIN = "{{sparsity_domain}}"


OF_REQUESTS = (
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
            Panel("Requests by tier", {TIER: rate(DECIDED, "sparsity_tier")}, "reqps", stack=True),
            Panel("Requests by domain", {DOMAIN: rate(DECIDED, "sparsity_domain")}, "reqps", stack=True),
            Panel("Why", {"{{sparsity_reason}}": rate(DECIDED, "sparsity_reason")}, "reqps", stack=True),
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
            Panel(
                "Refused and failed",
                {"{{rpc_response_status_code}}": rate("sparsity_rpc_errors_total", "rpc_response_status_code")},
                "reqps",
                stack=True,
            ),
            Row("Capacity, by tier"),
            Panel(
                "Wanted and answered",
                {
                    f"wanted {TIER}": rate("sparsity_router_wanted_total", "sparsity_tier"),
                    f"answered {TIER}": rate(DECIDED, "sparsity_tier"),
                },
                "reqps",
                "By the tier that policy gave, and the one that answered: apart where a tier has no room or no worker.",
            ),
            Panel(
                "Denser for want of a worker",
                {
                    "{{sparsity_reason}}": rate(
                        DECIDED, "sparsity_reason", 'sparsity_reason=~"TIER_FULL|TIER_UNAVAILABLE|MISSING_TELEMETRY"'
                    )
                },
                "reqps",
                "The tier that policy gave was full, could not be reached, or did not prove what it attends.",
                stack=True,
            ),
            Panel(
                "Places taken",
                {
                    TIER: "sum by (sparsity_tier) (sparsity_worker_requests)"
                    " / sum by (sparsity_tier) (sparsity_worker_requests_limit)"
                },
                "percentunit",
                "Requests in flight, of those that workers accept at once; tiers of one worker share its places.",
                most=1,
            ),
            Panel(
                "KV cache in use",
                {TIER: "avg by (sparsity_tier) (sparsity_worker_kv_use)"},
                "percentunit",
                "The mean of the workers that serve the tier.",
                most=1,
            ),
            Panel("Waiting", {TIER: "sum by (sparsity_tier) (sparsity_router_waiting)"}),
            Panel(
                "Refused for want of room",
                {
                    "share": 'sum(rate(sparsity_rpc_errors_total{rpc_response_status_code="RESOURCE_EXHAUSTED",'
                    f'rpc_method=~"sparsity.v1.InferenceService/.*"}}{RATE})) / sum(rate({DECIDED}{RATE}))'
                },
                "percentunit",
                "Of all requests, at the routers.",
            ),
            Panel(
                "Workers",
                {
                    "{{sparsity_tier}} {{sparsity_worker_state}}": "sum by (sparsity_tier, sparsity_worker_state)"
                    " (max by (gen_ai_request_model, sparsity_tier, sparsity_worker_state)"
                    " (sparsity_router_workers)) > 0"
                },
                what="As the router that sees the most of them sees them.",
                stack=True,
            ),
        ),
    ),
    Dashboard(
        "domain",
        "sparsity-router / domain",
        "One domain: its tiers, times, attention and savings.",
        (
            Panel("Requests by tier", {TIER: rate(DECIDED, "sparsity_tier", ONE)}, "reqps", stack=True),
            Panel("Why", {"{{sparsity_reason}}": rate(DECIDED, "sparsity_reason", ONE)}, "reqps", stack=True),
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
                {TIER: quantile(0.95, WHOLE, "sparsity_tier", f'{ONE},error_type=""')},
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
        {"domain": (DECIDED, "sparsity_domain")},
    ),
)
