"""What every server shares: listening, health, metrics, traces, logs, leases, bounds of requests."""
