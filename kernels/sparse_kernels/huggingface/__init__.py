"""Models of Hugging Face transformers, attended sparsely or measured."""
