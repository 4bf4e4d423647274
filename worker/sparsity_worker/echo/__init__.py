"""A worker's engine without a model: the prompt's last message is the answer. It loads no torch."""
