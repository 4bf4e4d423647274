"""Metrics: instruments, where they are served, and the exemplars that join them to traces."""
