"""The models that a router fronts, and all that is each one's own."""
