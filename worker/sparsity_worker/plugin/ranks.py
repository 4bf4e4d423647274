"""The ranks of tensor parallelism: which heads are this one's, and sums over all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that share each layer's heads.

    Attributes:
        kv_heads: of the model.
        rank: this one's number.
        size: how many there are.
        group: torch's process group of them, on the host.
    """

    kv_heads: int
    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of(cls, kv_heads: int) -> Ranks:
        """As SGLang has set them up in this process."""
        from sglang.srt.distributed.parallel_state import get_attn_tp_group

        group = get_attn_tp_group()
        return cls(kv_heads, group.rank_in_group, group.world_size, group.cpu_group)

    @property
    def own_heads(self) -> range:
        """This rank's KV heads; where there are fewer heads than ranks, several ranks have the same one."""
        each = max(1, self.kv_heads // self.size)
        first = self.rank * self.kv_heads // self.size
        return range(first, first + each)

    def add_up(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of all ranks' values, which every rank gets; each must call it, with one shape."""
        total = torch.from_numpy(values)
        torch.distributed.all_reduce(total, group=self.group)
        return total.numpy()
