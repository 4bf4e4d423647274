"""The nodes that hold one engine between them: tensor parallelism beyond one machine's devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.addresses import FORM, read_address


@dataclass(frozen=True, slots=True)
class Nodes:
    """This process among the nodes of its engine; alone without options.

    Attributes:
        count: how many there are.
        rank: this one's number: 0 serves requests, the others compute for it.
        address: `host:port` of node 0, where all of them meet at start.

    Raises:
        ConfigurationError: naming the option that does not fit the others.
    """

    count: int = 1
    rank: int = 0
    address: str | None = None

    def __post_init__(self) -> None:
        # Bounds of each alone are checked with the other options.
        if self.count > 0 and self.rank >= self.count:
            raise ConfigurationError(f"--node-rank: must be less than --nodes, {self.count}, not {self.rank}")
        if self.count > 1 and self.address is None:
            raise ConfigurationError("--nodes-address: give host:port of node 0, where all nodes meet")
        if self.address is not None and not read_address(self.address, "--nodes-address").port:
            raise ConfigurationError(
                f"--nodes-address: must be {FORM}, and no port 0, which every node would read anew"
            )

    @property
    def follows(self) -> bool:
        """Whether it computes for node 0, and serves nobody."""
        return self.rank > 0

    def ranks(self, tensor_parallel: int) -> int:
        """Ranks of this node, of all that share each layer's heads.

        Raises:
            ConfigurationError: when nodes cannot have as many each.
        """
        if tensor_parallel % self.count:
            raise ConfigurationError(
                f"--tensor-parallel: {tensor_parallel} ranks cannot be shared by {self.count} --nodes, as many on each"
            )
        return tensor_parallel // self.count

    def arguments(self) -> dict[str, Any]:
        """What SGLang is told; nothing of a single node."""
        if self.count == 1:
            return {}
        return {"nnodes": self.count, "node_rank": self.rank, "dist_init_addr": self.address}
