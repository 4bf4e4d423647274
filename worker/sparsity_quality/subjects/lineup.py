"""Who runs at which length: dense, the profiles, and what is set to a profile's density there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sparse_kernels.huggingface.needs import Needs, knob_for
from sparse_kernels.schedule import SparseAttention

from sparsity_quality.subjects.contenders import FIRST_DENSE, Contender, contender, rivals
from sparsity_quality.subjects.model import DENSE, LocalModel
from sparsity_quality.tasks import corpus

DENSE_CONTENDER = Contender("dense", "dense", DENSE)


class Contenders:
    """The contenders of a suite.

    Args:
        model: the model.
        profiles: by name.
        kinds: of rivals, by the name of the profile that they stand beside.
        folder: where settings that were found are kept for the next run.
        said: told of progress.
    """

    def __init__(
        self,
        model: LocalModel,
        profiles: Mapping[str, SparseAttention],
        kinds: Mapping[str, Sequence[str]],
        folder: Path,
        said: Callable[[str], None],
    ) -> None:
        self._model, self._profiles, self._kinds, self._said = model, profiles, kinds, said
        self._path = folder / "settings.json"
        self._known: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def at(self, length: int) -> list[Contender]:
        """Everybody who runs at a length, as they attend there; dense first."""
        found = [DENSE_CONTENDER]
        for name, profile in self._profiles.items():
            found.append(Contender(name, "profile", profile))
            if length >= profile.prefill.sparse_from:
                found += self._beside(name, profile, length)
        return [settled(each, length) for each in found]

    def _beside(self, name: str, profile: SparseAttention, length: int) -> list[Contender]:
        """Rivals set to the density that the profile has on a text of the calibration split."""
        chosen = [rival for rival in rivals(profile) if rival.kind in self._kinds.get(name, ())]
        digest = Contender(name, "profile", profile).digest
        keys = {
            rival.name: f"{self._model.path.name}/{corpus.fingerprint()}/{digest}/{length}/{rival.name}"
            for rival in chosen
        }
        if any(key not in self._known for key in keys.values()):
            self._said(f"setting {len(chosen)} rivals to the density of {name} at {length} tokens")
            tokens = self._model.encode(corpus.documents("calibration")[1])[:length]
            _, read = self._model.hidden(tokens, profile)
            bases = [rival.base for rival in chosen]
            needs = Needs(self._model.model, tokens, bases, profile.block_size, profile.sub_block)
            sparse = [layer for layer in needs.layers if layer not in FIRST_DENSE] or needs.layers
            # Its dense layers count in full.
            wanted = (read.density * len(needs.layers) - len(needs.layers) + len(sparse)) / len(sparse)
            for rival in chosen:
                self._known[keys[rival.name]] = knob_for(rival, needs, wanted, sparse)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._known, indent=2) + "\n")
        return [contender(rival, self._known[keys[rival.name]], length, profile, name) for rival in chosen]


def settled(each: Contender, length: int) -> Contender:
    """The contender as it attends at a length: dense, where everything it does begins later."""
    attention = each.attention
    if min(attention.prefill.sparse_from, attention.decode.sparse_from) > length:
        return replace(each, attention=DENSE)
    return each
