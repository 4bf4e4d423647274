"""The HTTP door: OpenAI's endpoints over the same pipeline as gRPC's Generate."""
