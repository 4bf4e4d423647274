"""Policies as documents: read, checked, written, and those that come with the package."""
