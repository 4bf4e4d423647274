"""The ranks of tensor parallelism: which heads are this one's, sums over all, and whether all nodes run alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sparsity_rpc.errors import ConfigurationError

from sparsity_worker.model_files import digest

# What each node reads of its own options, profiles and folders, by SGLang's names, and how a refusal names it.
_ARGUMENTS: Final = {
    "json_model_override_args": "--profile, or what `sparsity worker tune` found",
    "attention_backend": "--dense-backend, or what `sparsity worker tune` found",
    "dtype": "--dtype",
    "page_size": "the profiles' pages",
    "chunked_prefill_size": "--chunked-prefill-tokens",
    "max_running_requests": "--max-requests",
    "disable_overlap_schedule": "--overlap",
    "load_format": "--load-format",
    "context_length": "the model's context",
}
_ALIKE: Final = {
    **_ARGUMENTS,
    "tokens": "the room for tokens (--max-total-tokens, --mem-fraction, the devices' memory)",
    "model": "the files of --model",
}


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


def check_nodes(_: Any, scheduler: Any) -> None:
    """Refuses nodes whose ranks would not run alike: each reads its own options, and one that prunes waits for all.

    Args:
        scheduler: SGLang's, of one rank, whose groups there are.

    Raises:
        ConfigurationError: naming what differs.
        OSError: when the model's files cannot be read.
    """
    from sglang.srt.distributed.parallel_state import get_tp_group

    if scheduler.server_args.nnodes == 1:
        return
    group = get_tp_group()
    every: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(every, facts_of(scheduler), group=group.cpu_group)
    refuse_unlike(every)


def facts_of(scheduler: Any) -> dict[str, Any]:
    """What this rank has, of that which all ranks must have alike.

    Args:
        scheduler: SGLang's, whose pool of tokens there is: each rank plans by its own what all compute together.

    Raises:
        OSError: when the model's files cannot be read.
    """
    arguments = scheduler.server_args
    own = {name: getattr(arguments, name) for name in _ARGUMENTS}
    return own | {"tokens": scheduler.max_total_num_tokens, "model": digest(Path(arguments.model_path))}


def refuse_unlike(every: Sequence[Mapping[str, Any]]) -> None:
    """Whether ranks say the same of what they must have alike.

    Raises:
        ConfigurationError: naming what differs.
    """
    unlike = [told for name, told in _ALIKE.items() if any(each[name] != every[0][name] for each in every)]
    if unlike:
        raise ConfigurationError(f"--nodes: must run alike, but differ in {'; '.join(unlike)}; start all with the same")
