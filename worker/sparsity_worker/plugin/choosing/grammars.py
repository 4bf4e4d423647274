"""Grammars in an engine that was given no tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from cachetools import LRUCache

log = logging.getLogger("sparsity")
# Compiled grammars that are kept, and bytes of the parts that they share: SGLang and XGrammar keep all there ever were.
_KEPT: Final = 64
_KEPT_BYTES: Final = 256 * 2**20
MANAGER: Final = "sglang.srt.constrained.grammar_manager.GrammarManager.__init__"


def give_grammars(_: Any, manager: Any, scheduler: Any) -> None:
    """Makes the grammar backend that SGLang leaves out where tokens go in and out as they are.

    It needs to know what each token is in a text, which is in the model's tokenizer file.

    Args:
        manager: of SGLang's grammars, just made.
        scheduler: that it belongs to.
    """
    if manager.grammar_backend is not None:
        return
    from sglang.srt.constrained.base_grammar_backend import create_grammar_backend
    from transformers import PreTrainedTokenizerFast

    file = Path(scheduler.server_args.model_path) / "tokenizer.json"
    model = scheduler.model_config
    try:
        manager.grammar_backend = create_grammar_backend(
            scheduler.server_args,
            PreTrainedTokenizerFast(tokenizer_file=str(file)),
            model.vocab_size,
            model.hf_eos_token_id,
        )
        _bound(manager.grammar_backend)
    except ImportError as error:
        # SGLang was installed without XGrammar; requests that want a format are refused one by one.
        log.warning("answers cannot be held to formats: %s", error)


def _bound(backend: Any) -> None:
    """Lets a grammar backend forget what was not asked for lately."""
    from xgrammar import GrammarCompiler

    backend.cache = LRUCache(_KEPT)
    backend.grammar_compiler = GrammarCompiler(backend._tokenizer_info, cache_limit_bytes=_KEPT_BYTES)
