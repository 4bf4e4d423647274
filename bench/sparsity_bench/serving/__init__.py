"""How fast whole workers serve, tier by tier, beside the dense one on the same device."""
