"""What is asked of a worker."""
