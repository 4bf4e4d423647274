"""The `sparsity` command line."""
