"""What was measured on a device, the lengths that follow from it, and the file that keeps both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.benchmark import versions_of

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.devices import pick_dtype
from sparsity_worker.nvml import device_name
from sparsity_worker.profiles.profile import Profile
from sparsity_worker.profiles.tier_profile import TierProfile

SCHEMA: Final = "sparsity.crossover/v1"
NEVER: Final = 2**31 - 1
"""Where sparse attention was not faster at any length: longer than any context."""
_FASTER: Final = 0.97
# The first is the distribution of this module and of the kernels.
_PACKAGES: Final = ("sparsity-worker", "torch", "triton", "sglang")


class Heads(NamedTuple):
    """Of one rank's layers."""

    heads: int
    kv_heads: int
    dim: int

    @classmethod
    def read(cls, model_path: Path, ranks: int = 1) -> Heads:
        """Reads the model's config.json.

        Raises:
            ConfigurationError: when it is not readable, or speaks of no heads.
        """
        try:
            config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
            heads = int(config["num_attention_heads"])
            kv_heads = int(config.get("num_key_value_heads") or heads)
            dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"--model: {model_path}: {type(error).__name__}: {error}") from error
        return cls(heads // ranks, max(1, kv_heads // ranks), dim)


class Timing(NamedTuple):
    """One layer's attention, in milliseconds.

    Attributes:
        phase: `prefill` or `decode`.
        batch: sequences at once.
        length: tokens of each.
        sparse: by the profile.
        dense: by our kernels, everything attended.
        sdpa: by torch's fused attention; None where it was not asked.
        density: pairs that were attended sparsely, of all.
        theirs: by SGLang's own kernel, everything attended; None where it is not here.
    """

    phase: str
    batch: int
    length: int
    sparse: float
    dense: float
    sdpa: float | None
    density: float
    theirs: float | None = None


@dataclass(frozen=True, slots=True)
class Crossover:
    """Lengths from which a profile's sparse attention is faster than dense on a device.

    Attributes:
        profile: its label.
        device: as its driver calls it.
        heads: of one rank's layers.
        dtype: of the cache.
        date: when it was measured, ISO 8601.
        versions: of what the kernels come from and are compiled by.
        prefill_from: tokens of a prompt.
        decode_from: tokens of each sequence, by sequences at once.
        timings: behind them.
    """

    profile: str
    device: str
    heads: Heads
    dtype: str
    date: str
    versions: Mapping[str, str]
    prefill_from: int
    decode_from: Mapping[int, int]
    timings: tuple[Timing, ...] = ()

    @classmethod
    def of(cls, profile: str, device: str, heads: Heads, dtype: str, date: str, timings: Sequence[Timing]) -> Crossover:
        """What follows from timings."""
        decode = [each for each in timings if each.phase == "decode"]
        return cls(
            profile, device, heads, dtype, date, versions(),
            prefill_from=shortest(each for each in timings if each.phase == "prefill"),
            decode_from={
                batch: shortest(each for each in decode if each.batch == batch)
                for batch in sorted({each.batch for each in decode})
            },
            timings=tuple(timings),
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Crossover:
        """Reads what :meth:`write` wrote.

        Raises:
            ConfigurationError: when it is something else.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("schema") != SCHEMA:
                raise ValueError(f"schema: must be {SCHEMA}")
            document["heads"] = Heads(**document["heads"])
            document["decode_from"] = {int(batch): int(tokens) for batch, tokens in document["decode_from"].items()}
            document["timings"] = tuple(Timing(**each) for each in document["timings"])
            return cls(**document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path}: is no crossover: {error}; run `sparsity worker tune` again") from error

    def write(self, folder: Path) -> Path:
        """Keeps it under ``folder``; the file's path."""
        path = path_of(folder, self.profile, self.device, self.heads, self.dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {"schema": SCHEMA} | asdict(self)
        document["heads"] = self.heads._asdict()
        document["timings"] = [each._asdict() for each in self.timings]
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return path

    def apply(self, profile: Profile) -> Profile:
        """The profile, sparse only from where both it and this say so."""
        prefill = replace(profile.prefill, sparse_from=max(profile.prefill.sparse_from, self.prefill_from))
        return replace(profile, prefill=prefill, decode_from=dict(self.decode_from))


def versions() -> dict[str, str]:
    """Of what the kernels come from and are compiled by."""
    return versions_of(_PACKAGES)


def shortest(timings: Iterable[Timing]) -> int:
    """The shortest length from which on sparse is faster by more than measuring errs; `NEVER` without one."""
    found = NEVER
    for each in sorted(timings, key=lambda timing: timing.length, reverse=True):
        if each.sparse > _FASTER * each.dense:
            break
        found = each.length
    return found


def path_of(folder: Path, profile: str, device: str, heads: Heads, dtype: str) -> Path:
    """The file of a profile on a device, for layers of such heads."""
    name = f"{profile}-{device}-{'x'.join(map(str, heads))}-{dtype}"
    return folder / "tuned" / (re.sub(r"[^A-Za-z0-9.@-]+", "-", name) + ".json")


def tuned(profile: TierProfile | None, config: WorkerConfig) -> tuple[TierProfile | None, str]:
    """A worker's profile as its device wants it, and what is to be said of that.

    Raises:
        ConfigurationError: when what was measured cannot be read.
    """
    if not isinstance(profile, Profile) or config.device != "cuda":
        return profile, ""
    heads = Heads.read(config.model_path, config.tensor_parallel)
    found, told = find(
        config.state_folder, profile.label, device_name(), heads, pick_dtype(config.dtype, config.device)
    )
    if found is None:
        return profile, told
    profile = found.apply(profile)
    decode = ", ".join(f"{batch} at once {from_tokens(tokens)}" for batch, tokens in found.decode_from.items())
    return profile, f"prompts {from_tokens(profile.sparse_from)}; decode of {decode}; {told}"


def from_tokens(tokens: int) -> str:
    """A crossover in words."""
    return "at no length" if tokens == NEVER else f"from {tokens} tokens"


def find(folder: Path, profile: str, device: str, heads: Heads, dtype: str) -> tuple[Crossover | None, str]:
    """What is kept for a profile on this device, and why it is or is not used.

    Raises:
        ConfigurationError: when the file is broken.
    """
    path = path_of(folder, profile, device, heads, dtype)
    if not path.exists():
        return None, "not measured on this device; run `sparsity worker tune`"
    found = Crossover.read(path)
    if found.versions != versions():
        return None, f"measured on {found.date} with other versions; run `sparsity worker tune` again"
    return found, f"measured on {found.date} on {found.device}"


def check_model(facts: ModelFacts, heads: Heads) -> None:
    """Whether there is something to measure.

    Raises:
        ConfigurationError: when the model has no layers that our kernels attend.
    """
    if facts.latent or facts.index_topk:
        raise ConfigurationError(f"--model: {facts.name} is attended by SGLang's own kernels; there is nothing to tune")
    if heads.heads % heads.kv_heads:
        raise ConfigurationError(f"--model: {facts.name} has {heads.heads} heads for {heads.kv_heads} KV heads")
