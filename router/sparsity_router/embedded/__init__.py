"""The whole service on one machine: Valkey, three workers and the router under one supervisor."""
