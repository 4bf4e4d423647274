"""The decision and what it is made from, and drafts run over decisions that were made."""
