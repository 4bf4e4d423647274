"""Benchmarks of the running service, and their result files."""
