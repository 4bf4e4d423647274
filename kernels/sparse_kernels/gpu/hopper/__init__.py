"""Kernels in Gluon for NVIDIA Hopper: TMA, warp groups and asynchronous tensor-core products."""
