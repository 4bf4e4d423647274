"""The policies as of now: source, snapshot file, overrides, rollouts, guards."""
