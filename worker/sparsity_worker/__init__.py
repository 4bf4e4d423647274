"""A gRPC worker around one SGLang engine that serves one attention tier."""
