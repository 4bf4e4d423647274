"""What is counted, traced, logged and kept of requests, policies and workers."""
