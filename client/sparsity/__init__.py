"""The wire contract `sparsity.v1`: messages and stubs, generated from proto/ by `make protos`."""
