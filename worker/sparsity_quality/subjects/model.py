"""A Hugging Face model in this process, read by any attention."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sparse_kernels.config import PrefillConfig
from sparse_kernels.huggingface.adapter import NAME, Attended, use_sparsity
from sparse_kernels.huggingface.paged_cache import PagedCache
from sparse_kernels.schedule import SparseAttention
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.benchmark import processor
from sparsity_worker.profiles.profile import Profile
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from sparsity_quality.tasks.case import cut

DENSE = SparseAttention(prefill=PrefillConfig(sparse_from=2**31), dense_layers=frozenset(range(4096)))
_LOGITS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Read:
    """What reading took.

    Attributes:
        density: attended over causal pairs, all layers.
        coverage: mean estimated coverage over all layers.
        seconds: wall clock.
    """

    density: float
    coverage: float
    seconds: float


class LocalModel:
    """One model and its paged cache; on a GPU it attends by the kernels that serve there.

    Attributes:
        device: of torch.
        device_name: of the processor or the GPU.
        dtype: of the weights: float32 on the CPU, bfloat16 on a GPU.

    Raises:
        ConfigurationError: when the folder holds no model that attention can be exchanged in.
    """

    def __init__(self, path: Path, capacity: int, device: str = "cpu") -> None:
        tokenizer = path / "tokenizer.json"
        if not tokenizer.is_file():
            raise ConfigurationError(f"--model: {path} has no tokenizer.json; give the folder of a Hugging Face model")
        # Not by transformers: it would load sentencepiece, whose pinned release can crash as the process ends.
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        logging.disable_progress_bar()
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=NAME)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"--model: {path}: {error}") from error
        try:
            self.model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigurationError(f"--device: {device}: {error}") from error
        self.path, self.device, self.dtype = path, torch.device(device), dtype
        self.device_name = processor() if device == "cpu" else torch.cuda.get_device_name(self.device)
        config = self.model.config
        self.layers: int = config.num_hidden_layers
        limit = int(config.max_position_embeddings)
        if capacity > limit:
            raise ConfigurationError(f"--lengths: {capacity} is more than the model's {limit} positions")
        self._capacity = capacity
        ends = config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        try:
            self.hidden(range(2), DENSE)
        except ValueError as error:
            raise ConfigurationError(f"--model: {path}: {error}") from error

    def check(self, profile: Profile) -> None:
        """Refuses a profile that was learned for another model.

        Raises:
            ConfigurationError: naming profile and field.
        """
        config = self.model.config
        try:
            profile.check(self.layers, getattr(config, "num_key_value_heads", config.num_attention_heads))
            if self.device.type != "cpu":
                # It loads Triton, which torch for CPUs comes without.
                from sparsity_worker.profiles.kernels import check_kernels

                check_kernels(profile)
        except ValueError as error:
            raise ConfigurationError(f"--profile: {profile.label}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids, without special ones."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def cache(self, attention: SparseAttention) -> PagedCache:
        """Room for one sequence."""
        return PagedCache(self.layers, self._capacity, attention.block_size, attention.sub_block)

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int], attention: SparseAttention) -> tuple[torch.Tensor, Read]:
        """Last hidden states ``[T, hidden]`` of a whole text, attended as one prompt."""
        started = time.monotonic()
        cache = self.cache(attention)
        attended = use_sparsity(self.model, attention, cache)
        ids = torch.tensor([list(tokens)], device=self.device)
        found: torch.Tensor = self.model.base_model(ids, past_key_values=cache).last_hidden_state[0]
        return found, _read(attended, time.monotonic() - started)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> Sequence[torch.Tensor]:
        """Logits, float32 ``[<= 512, vocabulary]``, a part of the rows at a time."""
        return _Parts(self.model.get_output_embeddings(), hidden)

    def open(self, tokens: Sequence[int], attention: SparseAttention) -> Conversation:
        """Reads a context that questions will follow."""
        return Conversation(self, tokens, attention)

    @torch.inference_mode()
    def step(self, ids: Sequence[int], cache: PagedCache) -> int:
        """Appends tokens to the cache; the most likely next one."""
        hidden = self.model.base_model(torch.tensor([list(ids)], device=self.device), past_key_values=cache)
        return int(_float_logits(self.model.get_output_embeddings(), hidden.last_hidden_state[:, -1]).argmax())

    def ends(self, token: int) -> bool:
        """Whether the model stops at this token."""
        return token in self._ends


class Conversation:
    """A context that was read once, and questions that each follow it alone.

    Attributes:
        read: what reading the context took.
        answer_seconds: wall clock of all answers so far.
    """

    def __init__(self, model: LocalModel, tokens: Sequence[int], attention: SparseAttention) -> None:
        self._model, self._attention, self._length = model, attention, len(tokens)
        self._cache = model.cache(attention)
        self.answer_seconds = 0.0
        started = time.monotonic()
        # The prompt's last tiles are the question's: of those that stay dense one fewer is the context's.
        prefill = attention.prefill
        context = replace(attention, prefill=replace(prefill, dense_last_tiles=max(0, prefill.dense_last_tiles - 1)))
        attended = use_sparsity(model.model, context, self._cache)
        model.step(tokens, self._cache)
        self.read = _read(attended, time.monotonic() - started)

    def ask(self, prompt: str, new_tokens: int, stop: str) -> str:
        """The greedy answer, up to ``stop``, which is left out."""
        started = time.monotonic()
        self._cache.truncate(self._length)
        use_sparsity(self._model.model, self._attention, self._cache)
        written: list[int] = []
        following = self._model.encode(prompt)
        text = ""
        for _ in range(new_tokens):
            token = self._model.step(following, self._cache)
            if self._model.ends(token):
                break
            written.append(token)
            following = [token]
            text = self._model.tokenizer.decode(written)
            if (ended := cut(text, stop)) != text:
                text = ended
                break
        self.answer_seconds += time.monotonic() - started
        return text


class _Parts(Sequence[torch.Tensor]):
    def __init__(self, head: Any, hidden: torch.Tensor) -> None:
        self._head, self._hidden = head, hidden

    def __len__(self) -> int:
        return -(-self._hidden.shape[0] // _LOGITS_AT_ONCE)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _float_logits(self._head, self._hidden[index * _LOGITS_AT_ONCE : (index + 1) * _LOGITS_AT_ONCE])


def _float_logits(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits multiplied in float32 whatever the dtype: in 16 bits many are equal, and divergence has a floor."""
    bias = None if head.bias is None else head.bias.float()
    return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)


def _read(attended: Attended, seconds: float) -> Read:
    calls = [one for each in attended.prefill.values() for one in each]
    rows = sum(one.rows for one in calls)
    coverage = sum(one.coverage * one.rows for one in calls) / rows if rows else 1.0
    return Read(attended.density(), coverage, seconds)
