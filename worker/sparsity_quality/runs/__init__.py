"""Suites over cases, cell by cell."""
