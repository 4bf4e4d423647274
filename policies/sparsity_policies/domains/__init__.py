"""Shipped policy documents, one YAML file a domain, and the sets of length bands."""
