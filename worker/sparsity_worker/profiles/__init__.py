"""Sparsity profiles: the numbers behind a tier."""
