"""Which variants of kernels launches ask for, found without a GPU and without compiling: nothing runs.

`python -m support.kernels.kernel_variants` prints one JSON object of what each case found. Needs TRITON_INTERPRET=0.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from sparse_kernels import PageSummaries
from sparse_kernels.gpu import block_sparse_prefill
from sparse_kernels.gpu.hopper import block_sparse_prefill as hopper
from sparsity_worker.plugin.accounts import prefill as prefill_accounts
from sparsity_worker.plugin.accounts.decode_steps import DenseRows
from sparsity_worker.plugin.accounts.ledger import Ledger
from sparsity_worker.plugin.attention import Prompt, Spans
from sparsity_worker.plugin.triton_attention import TritonAttention
from sparsity_worker.plugin.warm_up import Served, warm_up
from sparsity_worker.profiles.profile import Profile, load_profile
from sparsity_worker.profiles.served_tiers import attends_everything, to_config
from sparsity_worker.tune.ahead import compile_share
from sparsity_worker.tune.crossover import Heads
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

# Of the launch, besides what kernels are told.
_OPTIONS = ("num_warps", "num_stages", "launch_pdl", "maxnreg")
_LAYERS = 4


class Variants:
    """What Triton would look a kernel up by in its cache, of every launch."""

    def __init__(self) -> None:
        self.found: dict[str, set[tuple[Any, ...]]] = {}
        self._backend = make_backend(GPUTarget("cuda", 90, 32))
        self._binders: dict[Any, Any] = {}

    def run(self, function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """In place of a launch, or of a compilation."""
        if function not in self._binders:
            made = jit.create_function_from_signature(function.signature, function.params, self._backend)
            self._binders[function] = made
        own = dict.fromkeys(_OPTIONS) | options
        _, specialization, rest = self._binders[function](*args, **own)
        key = (*map(str, specialization), *sorted((name, str(value)) for name, value in rest.items()))
        self.found.setdefault(f"{function.__module__}.{function.__name__}", set()).add(key)

    def count(self) -> dict[str, int]:
        """By kernel."""
        return {name: len(keys) for name, keys in sorted(self.found.items())}


@contextmanager
def recorded(hopper_runs: bool) -> Iterator[Variants]:
    """What is launched meanwhile."""
    variants = Variants()

    def run(function: Any, *args: Any, **options: Any) -> None:
        variants.run(function, *args, **options)

    def entered(_: Any) -> None:
        """Launches that are hooked into go by Triton itself."""

    # What asks a driver.
    asked = {"processors": 132, "_counter": torch.zeros(1, dtype=torch.int32), "current_stream": 0}
    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(jit.JITFunction, "run", run))
        chosen = mock.patch.object(
            block_sparse_prefill, "implementation", return_value="gluon" if hopper_runs else "triton"
        )
        patched.enter_context(chosen)
        patched.enter_context(mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False))
        for name, value in asked.items():
            if hasattr(hopper, name):
                patched.enter_context(mock.patch.object(hopper, name, return_value=value))
        triton.knobs.runtime.launch_enter_hook.add(entered)
        patched.callback(triton.knobs.runtime.launch_enter_hook.remove, entered)
        yield variants


class Worker:
    """Attention of a few layers, every token in the first page of their cache."""

    def __init__(self, profiles: Sequence[Profile], served: Served, kv_heads: int, device: str = "cpu") -> None:
        self.served, self.profiles = served, [profile.for_heads(range(kv_heads)) for profile in profiles]
        profile = self.profiles[0]
        self.keys = torch.zeros(2, profile.block_size, kv_heads, served.dim, dtype=torch.bfloat16, device=device)
        shape = (*self.keys.shape, profile.sub_block)
        summaries = {layer: PageSummaries(*shape, self.keys.device, torch.bfloat16) for layer in range(_LAYERS)}
        # As SGLang has it, with room for a few tokens past the context.
        pool = torch.zeros(served.most + 1, served.context + 4, dtype=torch.int32, device=device)
        self.ledger = Ledger(_LAYERS, capacity=100)
        self.attention = TritonAttention(
            self.profiles, summaries, pool[:, : served.context], self.ledger, served.heads
        )  # fmt: skip

    def warm_up(self) -> None:
        warm_up(self.attention, self.profiles, lambda _: (self.keys, self.keys), self.served)

    def attend(self, spans: Spans, decode: bool) -> None:
        self.attention.prepare(spans, decode)
        self._layers(sum(spans.new), decode)

    def replay(self, lengths: list[int]) -> None:
        """A decode step as a graph is captured."""
        there = torch.tensor(lengths, device=self.keys.device)
        self.attention.stage(Spans([], [], [], [], []), torch.zeros_like(there), there)
        self._layers(len(lengths), True)

    def _layers(self, rows: int, decode: bool) -> None:
        q = torch.zeros(rows, self.served.heads, self.served.dim, dtype=torch.bfloat16, device=self.keys.device)
        for layer in range(_LAYERS):
            made: Any = SimpleNamespace(layer_id=layer, scaling=0.1)
            self.attention.attend(q, self.keys, self.keys, made, decode)
        self.attention.book()


def spans(parts: list[tuple[int, int, int]], tiers: Sequence[int] = (0,)) -> Spans:
    """Of lengths, new tokens and whole prompts, which are of these tiers in turn."""
    lengths, new, totals = map(list, zip(*parts, strict=True))
    prompts = [Prompt(total, tier=tier) for total, tier in zip(totals, cycle(tiers), strict=False)]
    return Spans([f"{at}" for at in range(len(parts))], [0] * len(parts), lengths, new, prompts)


def prefills(draw: random.Random, context: int, count: int, tiers: int) -> Iterator[Spans]:
    """Chunks of prompts of all lengths, alone and together, of so many tiers."""
    for _ in range(count):
        parts = []
        for _ in range(draw.choice((1, 1, 2, 5))):
            total = draw.randint(1, draw.choice((64, 1000, 9000, context)))
            new = draw.randint(1, min(total, 3000))
            parts.append((draw.randint(new, total), new, total))
        yield spans(parts, mixed(draw, tiers))


def mixed(draw: random.Random, tiers: int) -> list[int]:
    """Some tiers in some order."""
    return [draw.randrange(tiers) for _ in range(5)]


def served_after_warm_up(
    names: Sequence[str], heads: int, kv_heads: int, context: int, hopper_runs: bool
) -> dict[str, Any]:
    draw, served = random.Random(0), Served(heads, 64, context, 32)
    profiles = [load_profile(name) for name in names]
    if len(profiles) > 1:
        profiles.insert(0, attends_everything(_LAYERS))
    worker, tiers = Worker(profiles, served, kv_heads), len(profiles)
    with recorded(hopper_runs) as variants:
        worker.warm_up()
        warm, entries = variants.count(), len(worker.ledger)
        for batch in prefills(draw, context, 80, tiers):
            worker.attend(batch, False)
        for _ in range(40):
            lengths = [draw.randint(1, context) for _ in range(draw.randint(1, served.most))]
            worker.attend(spans([(length, 1, length) for length in lengths], mixed(draw, tiers)), True)
        after = variants.count()
        worker.attention.allocate(served.most)
        for count in range(1, served.most + 1):
            worker.replay([1] * count)
    return {"warm": warm, "after": after, "graphs": variants.count(), "entries": entries}


class _Waits(TorchFunctionMode):
    """Counts what a host would wait for, were the meta device a GPU: copies that are not told to go on without it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        made = isinstance(out, torch.Tensor) and out.device.type == "meta"
        told = function in (torch.tensor, torch.as_tensor)
        copied = function is torch.Tensor.to and args[0].device.type != "meta" and not kwargs.get("non_blocking")
        # `copy_` takes it as an argument of its place, too.
        filled = function is torch.Tensor.copy_ and args[1].device.type != "meta"
        if made and (told or copied or (filled and not (kwargs.get("non_blocking") or args[2:3] == (True,)))):
            self.found.append(function.__name__)
        return out


def waits() -> dict[str, Any]:
    """Steps on torch's meta device, from which nothing can be read: whatever asks it for a value fails."""
    found: dict[str, Any] = {}
    profiles = [attends_everything(_LAYERS), *map(load_profile, ("generic-moderate", "generic-aggressive"))]
    worker = Worker(profiles, Served(8, 64, 32768, 8), 2, "meta")
    rows = DenseRows(9, [{}, {}, {1: 100, 8: 0}], worker.ledger, worker.keys.device)
    # Thresholds are brought to the device once: by the warm-up.
    mock.patch.object(prefill_accounts, "Download", _Never).start()
    with recorded(True):
        worker.warm_up()
        worker.attention.allocate(8)
        with _Waits() as seen:
            worker.attend(spans([(20_000, 300, 30_000), (64, 64, 64), (20_000, 300, 30_000)], (1, 0, 2)), False)
            found["prefill"], seen.found = seen.found, []
            batch = spans([(500, 1, 500), (20_000, 1, 20_000)], (2, 1))
            worker.attend(batch, True)
            found["decode"], seen.found = seen.found, []
            worker.attention.stage(batch, *torch.zeros(2, 2, dtype=torch.int64, device="meta"))
            rows.stage(batch)
            rows.apply(*worker.attention.decoding(), torch.zeros(2, dtype=torch.int64, device="meta"))
            worker._layers(2, True)
            rows.book()
            found["replay"], seen.found = seen.found, []
            torch.zeros(2).to("meta")
            found["shown"] = seen.found
    return found


class _Never:
    """A download of which nothing has come yet."""

    def __init__(self, found: torch.Tensor) -> None:
        self.asked = found.shape

    def ready(self) -> bool:
        return False


def shares() -> dict[str, Any]:
    profile, heads = load_profile("generic-aggressive"), Heads(8, 2, 64)
    asked = {
        "tiers": to_config(["aggressive"], {"aggressive": profile}),
        "heads": heads,
        "context": 32768,
        "most": 8,
        "dtype": "bfloat16",
    }
    asked = json.loads(json.dumps(asked))
    found = []
    with recorded(True) as variants:
        Worker([profile], Served(8, 64, 32768, 8), 2).warm_up()
        whole = variants.found
    for share in range(3):
        with recorded(True) as variants:
            compile_share(asked, share, 3, "cpu")
            found.append(variants.found)
    names = sorted(whole)
    return {
        "names": names,
        "whole": [len(whole[name]) for name in names],
        "together": [len(set().union(*(each.get(name, set()) for each in found)) & whole[name]) for name in names],
        "each": [sum(map(len, each.values())) for each in found],
    }


CASES: dict[str, Any] = {
    "means on Hopper": lambda: served_after_warm_up(["generic-aggressive"], 8, 2, 131072, True),
    "means elsewhere": lambda: served_after_warm_up(["generic-moderate"], 8, 2, 20_000, False),
    "rows": lambda: served_after_warm_up(["smollm2-135m-aggressive"], 9, 3, 8192, True),
    "tiers": lambda: served_after_warm_up(["generic-moderate", "generic-aggressive"], 8, 2, 32768, True),
    "shares": shares,
    "waits": waits,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: CASES[name]() for name in sys.argv[1:] or CASES}))
