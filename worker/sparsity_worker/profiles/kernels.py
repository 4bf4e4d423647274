"""Whether the GPU's kernels can attend by a profile. Needs Triton."""

from __future__ import annotations

from sparse_kernels.gpu.block_energy import COLUMNS

from sparsity_worker.profiles.profile import Profile


def check_kernels(profile: Profile) -> None:
    """Compares a profile with what the kernels choose blocks by.

    Raises:
        ValueError: naming the field that no kernel has.
    """
    prefill = profile.prefill
    if prefill.score not in COLUMNS:
        raise ValueError(f"prefill.score: must be one of {', '.join(COLUMNS)} on a GPU, not {prefill.score}")
    if prefill.query_tile % profile.block_size or prefill.query_tile & (prefill.query_tile - 1):
        raise ValueError(f"prefill.query_tile: {prefill.query_tile} must be a power of 2 and whole blocks on a GPU")
