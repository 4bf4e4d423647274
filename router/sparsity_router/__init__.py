"""The router: classify, decide, pick a worker, relay its stream; and the `sparsity` command line."""
