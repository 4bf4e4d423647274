"""The operations in torch, a sequence at a time."""
