"""The model that servers are to serve: they take and give tokens, and its text is the router's to make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sparsity_serving.fields.served import Served
from sparsity_serving.tokens.spelling import Spelling
from tokenizers import Tokenizer

from sparsity_router.fleet.stock.calls import CLOSES, OPENS, reads_calls

# As most models that think mark it; workers of ours know more ways (SGLang's parsers).
_MARKS: Final = ("<think>", "</think>")
# What gives a model sparse layers, under any name of a backend: DeepSeek's and Qwen's indexers, MiniCPM, MiniMax.
_SPARSE: Final = (
    "index_topk", "indexer_n_heads", "compress_ratios", "sparse_config", "sparse_attention_config",
)  # fmt: skip
# Where a template opens a span of reasoning itself, it does so last.
_TAIL: Final = 8


@dataclass(frozen=True, slots=True)
class StockModel:
    """What a router knows of its model.

    Attributes:
        tokenizer: the model's.
        served: its name, its sizes, and how it is sampled where a caller does not say.
        digest: SHA-256 of tokenizer.json, hexadecimal.
        kind: `model_type` of its config.json; empty where that has none.
        calls: whether it writes calls of tools in a form that is read here.
        sparse: what in its config.json gives it sparse attention; empty where nothing does.
        spelling: of its tokens.
        marks: token ids around a span of reasoning; None where it has none.
    """

    tokenizer: Tokenizer
    served: Served
    digest: str
    kind: str = ""
    calls: bool = False
    sparse: str = ""
    spelling: Spelling = field(init=False)
    marks: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        found = [self.tokenizer.token_to_id(mark) for mark in _MARKS]
        object.__setattr__(self, "spelling", Spelling(self.tokenizer))
        object.__setattr__(self, "marks", None if None in found else tuple(found))

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, served: Served, digest: str, config: dict[str, Any], template: str = ""
    ) -> StockModel:
        """The model of a folder's files."""
        added = tokenizer.get_added_tokens_decoder().values()
        # Such marks are left out of its text.
        hidden = any(token.special and token.content in (OPENS, CLOSES) for token in added)
        calls = bool(template) and reads_calls(template) and not hidden
        return cls(tokenizer, served, digest, str(config.get("model_type") or ""), calls, sparse_by(config))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text; ``special`` adds what the model puts around plain text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def thinks(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within a span of reasoning."""
        last = next((token for token in reversed(prompt[-_TAIL:]) if self.marks and token in self.marks), None)
        return bool(self.marks) and last == self.marks[0]  # type: ignore[index]


def sparse_by(config: Mapping[str, Any]) -> str:
    """What in a model's config.json gives it layers of sparse attention; empty where nothing does."""
    names = config.get("architectures") or ()
    if found := next((name for name in names if "Sparse" in str(name)), ""):
        return str(found)
    # Of a model that sees, those of its text lie one deeper.
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    return next((key for key in _SPARSE for part in parts if part.get(key)), "")
