"""Risk policies: model, validation, the decision function, the Redis store."""
