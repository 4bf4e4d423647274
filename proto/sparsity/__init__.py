"""What every component shares: the wire contract `sparsity.v1`, the exception tree, and telemetry names."""
