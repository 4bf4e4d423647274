"""Counts what SGLang's own DSA backend attended: which it does not tell, but which follows from lengths."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np
from sparse_kernels.stats import causal_pairs

from sparsity_worker.keys import CONFIG_KEY
from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.accounts.packing import Followed
from sparsity_worker.plugin.attention import Prompt, on_the_host
from sparsity_worker.profiles.indexer_profile import INDEXER_SCHEMA, parse_indexer_profile
from sparsity_worker.profiles.profile_document import schema_of
from sparsity_worker.profiles.served_tiers import documents

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

# SGLang's class, by name: its module imports on GPUs only.
_CLASS: Final = "DeepseekSparseAttnBackend"
_KEPT: Final = "sparsity_meter"


class Pairs(NamedTuple):
    """(query, key) pairs of some queries of one layer.

    Attributes:
        attended: pairs with a picked key.
        causal: pairs in all.
        whole: queries that attend every key they have.
        queries: their number.
    """

    attended: int
    causal: int
    whole: int
    queries: int


def picked(length: int, new: int, index_topk: int) -> Pairs:
    """Pairs of the last ``new`` queries of ``length``, each of which attends ``index_topk`` keys, or all it has."""
    start = length - new
    whole = min(max(index_topk - start, 0), new)
    attended = causal_pairs(whole, start) + (new - whole) * index_topk
    return Pairs(attended, causal_pairs(new, start), whole, new)


class IndexerMeter:
    """Accounts of the requests on a DSA backend, and the proof that its sparse path runs.

    A prefill layer counts as sparse only where the backend was handed the indexer's list of tokens. Decode, which CUDA
    graphs replay unseen, has no other path. Coverage is a lower bound: queries with fewer keys than they may pick keep
    all of the mass, and of the others nothing is known, which counts as none.

    Args:
        backend: SGLang's DSA backend.
        layers: of the model.
        index_topk: tokens that a query attends.
        capacity: requests whose accounts are kept.
        cuda_graphs: whether decode is replayed from CUDA graphs.
    """

    # Of a tier that has the engine to itself.
    places: ClassVar[Mapping[str, int]] = {}

    def __init__(self, backend: Any, layers: int, index_topk: int, capacity: int, *, cuda_graphs: bool) -> None:
        self.ledger = Ledger(layers, capacity)
        self.prompts: dict[str, Prompt] = {}
        self.followed: dict[str, Followed] = {}
        self._layers = layers
        self._index_topk = index_topk
        self._capacity = capacity
        self._cuda_graphs = cuda_graphs
        self._lengths: OrderedDict[str, int] = OrderedDict()
        self._listed: set[int] = set()
        backend.forward_extend = self._watched(backend.forward_extend)

    @classmethod
    def of(cls, runner: ModelRunner) -> IndexerMeter | None:
        """The meter of a runner, made when first asked for; None where it does not run the DSA backend as told."""
        # Alone where it is: what the model picks is one number for a whole engine.
        document = next(iter(documents(runner.model_config).values()), None)
        if schema_of(document) != INDEXER_SCHEMA:
            return None
        known: IndexerMeter | None = getattr(runner, _KEPT, None)
        backend: Any = getattr(runner, "attn_backend", None)
        if known is None and type(backend).__name__ == _CLASS:
            profile = parse_indexer_profile(document, f"model config {CONFIG_KEY}")
            if backend.dsa_index_topk == profile.index_topk:
                layers, capacity = runner.model_config.num_hidden_layers, 4 * runner.req_to_token_pool.size
                graphs = not runner.server_args.disable_cuda_graph
                known = cls(backend, layers, profile.index_topk, capacity, cuda_graphs=graphs)
                setattr(runner, _KEPT, known)
        return known

    def facts(self) -> str:
        """How it was set up, as JSON."""
        return json.dumps({"kernels": "sglang", "cuda_graphs": self._cuda_graphs, "summary_bytes": 0})

    def _watched(self, forward_extend: Callable[..., Any]) -> Callable[..., Any]:
        def watched(q: Any, k: Any, v: Any, layer: Any, *args: Any, topk_indices: Any = None, **kwargs: Any) -> Any:
            if topk_indices is None:
                return forward_extend(q, k, v, layer, *args, **kwargs)
            self._listed.add(layer.layer_id)
            return forward_extend(q, k, v, layer, *args, topk_indices=topk_indices, **kwargs)

        return watched

    def packed(self, rid: str) -> bytes:
        """A request's account so far."""
        return self.ledger.pack(rid)

    def book(self, forward_batch: ForwardBatch) -> None:
        """Enters what a batch attended, after its last layer."""
        decode = forward_batch.forward_mode.is_decode_or_idle()
        sparse = list(range(self._layers)) if decode else sorted(self._listed)
        self._listed.clear()
        table = np.empty((self._layers, 4))
        for rid, length, new in self._spans(forward_batch, decode):
            pairs = picked(length, new, self._index_topk)
            table[:] = (pairs.causal, pairs.causal, new, new)
            table[sparse] = pairs
            known = self.prompts.get(rid)
            shares = self.ledger.shares(rid, length, new, 0 if decode else known.length if known else length)
            self.ledger.add_layers(rid, shares, range(self._layers), table)
            self.ledger.attended(rid, length)

    def _spans(self, forward_batch: ForwardBatch, decode: bool) -> Iterator[tuple[str, int, int]]:
        """Of each request: its id, the tokens it has, and how many of them are new."""
        rids = list(forward_batch.rids or ())
        if decode:
            # Lengths of a batch in decode lie on the device; to read them would wait for it.
            for rid in rids:
                self._note(rid, self._lengths.get(rid, 0) + 1)
                yield rid, self._lengths[rid], 1
            return
        prefixes, news = (on_the_host(forward_batch, f"extend_{name}_lens") for name in ("prefix", "seq"))
        for rid, prefix, new in zip(rids, prefixes, news, strict=True):
            self._note(rid, prefix + new)
            yield rid, prefix + new, new

    def _note(self, rid: str, length: int) -> None:
        self._lengths[rid] = length
        self._lengths.move_to_end(rid)
        if len(self._lengths) > self._capacity:
            self._lengths.popitem(last=False)
