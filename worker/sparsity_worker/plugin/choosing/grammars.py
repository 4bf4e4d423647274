"""Grammars in an engine that was given no tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("sparsity")
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
    except ImportError as error:
        # SGLang was installed without XGrammar; requests that want a format are refused one by one.
        log.warning("answers cannot be held to formats: %s", error)
