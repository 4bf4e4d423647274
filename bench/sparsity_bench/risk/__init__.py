"""What detection of risk misses and moves."""
