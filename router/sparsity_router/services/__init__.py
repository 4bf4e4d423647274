"""The gRPC services of the router."""
