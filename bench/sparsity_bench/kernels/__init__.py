"""How fast the Triton kernels are, beside dense attention on the same device."""
