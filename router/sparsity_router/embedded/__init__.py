"""The whole service on one machine: Valkey, workers and the router under one supervisor."""
