"""Whose calls are let in, and how much of them: tenants and their rates."""
