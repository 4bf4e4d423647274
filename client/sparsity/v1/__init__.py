"""Messages and stubs of `sparsity.v1`, generated from the .proto files beside this one."""
