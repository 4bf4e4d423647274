"""Seeds of single requests, without the rest of SGLang's deterministic inference."""

from __future__ import annotations

import random
from typing import Any, Final

BATCH: Final = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"


def give_seeds(info: Any, *args: Any, **_: Any) -> None:
    """Seeds every row of a batch that PyTorch samples: with its request's, or with one that nobody knows.

    A row of SGLang's has a seed only where all have one, and it gives those without any one and the same.

    Args:
        info: how the batch is sampled, just made.
        args: what it was made from, the batch among it.
    """
    from sglang.srt.runtime_context import get_exec

    batch = next((each for each in args if hasattr(each, "reqs")), None)
    if batch is None or info.sampling_seed is not None or get_exec().kernel.sampling_backend != "pytorch":
        return
    import torch

    asked = [request.sampling_params.sampling_seed for request in batch.reqs]
    seeds = [random.getrandbits(63) if seed is None else seed for seed in asked]
    info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=info.device)
