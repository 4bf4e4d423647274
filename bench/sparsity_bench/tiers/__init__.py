"""The embedded service and its tiers."""
