"""What the worker answers: calls, requests, load, and what is told of them."""
