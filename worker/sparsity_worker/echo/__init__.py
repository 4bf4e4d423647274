"""A worker's engine without a model: the prompt's last message is the answer. It loads no torch."""

from sparsity_worker.echo.engine import EchoEngine

__all__ = ["EchoEngine"]
