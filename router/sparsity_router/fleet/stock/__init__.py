"""Servers of stock SGLang as dense workers, asked by SGLang's own gRPC contract (`sglang.grpc.scheduler`)."""
