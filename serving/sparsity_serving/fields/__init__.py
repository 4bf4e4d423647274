"""What a request may bring beside its prompt: tools, formats, log-probabilities; what the model's files say of it."""
