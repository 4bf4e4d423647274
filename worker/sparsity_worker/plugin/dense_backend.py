"""The dense tier by our kernels: prefill over a full index, and decode over all pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparse_kernels import PageSummaries
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import DENSE

from sparsity_worker.keys import DENSE_BACKEND
from sparsity_worker.plugin.backend import SparsityAttnBackend, kernels_of
from sparsity_worker.profiles.profile import Profile
from sparsity_worker.profiles.served_tiers import attends_everything

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner


class DenseAttnBackend(SparsityAttnBackend):
    """Attends everything; nothing is summarized, and nothing is reported.

    Raises:
        ConfigurationError: at start, naming the option it cannot serve.
    """

    accounts: ClassVar[bool] = False

    def _tiers(self, runner: ModelRunner) -> dict[str, Profile]:
        if kernels_of(str(runner.device)) == "torch":
            raise ConfigurationError(f"--dense-backend: {DENSE_BACKEND} is for GPUs; leave it out on the CPU")
        return {DENSE: attends_everything(runner.model_config.num_hidden_layers)}

    def _summaries(self, layers: range) -> dict[int, PageSummaries]:
        # On torch's meta device nothing is allocated.
        keys = self._paged(layers.start)[0]
        page, kv_heads, dim = keys.shape[1:]
        shape = (0, page, kv_heads, dim, self.profiles[0].sub_block)
        return {layer: PageSummaries(*shape, "meta", keys.dtype) for layer in layers}
