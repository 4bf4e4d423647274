"""A benchmark for each operation, by its name."""
