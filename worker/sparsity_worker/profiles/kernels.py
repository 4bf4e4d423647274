"""Whether the GPU's kernels can attend by a profile, and which of them do. Needs Triton."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from sparse_kernels.gpu.block_energy import COLUMNS
from sparse_kernels.gpu.block_sparse_prefill import implementation
from sparse_kernels.gpu.checks import generation

from sparsity_worker.profiles.profile import Profile

log = logging.getLogger("sparsity.worker")
_HOPPER = 9


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


def prefill_kernels(profiles: Iterable[Profile], keys: torch.Tensor) -> str:
    """Which kernels attend prompts on a device: ``gluon``, or ``triton``, of which the log says why on a GPU.

    Args:
        profiles: of all tiers, dense ones too.
        keys: of one layer's cache, ``[pages, page, Hkv, D]``.
    """
    page, _, dim = keys.shape[1:]
    tiles = sorted({profile.prefill.query_tile for profile in profiles})
    if all(implementation(keys.device, keys.dtype, dim, page, tile) == "gluon" for tile in tiles):
        return "gluon"
    if keys.device.type == "cuda":
        hopper = generation(keys.device) == _HOPPER
        of = f"heads of {dim} in {keys.dtype}, pages of {page} and tiles of {', '.join(map(str, tiles))} tokens"
        why = f"they have no kernel for {of}, or this Triton has no Gluon" if hopper else "it is no Hopper"
        log.warning("prompts are attended by Triton's kernels, not by the faster ones for NVIDIA Hopper: %s", why)
    return "triton"
