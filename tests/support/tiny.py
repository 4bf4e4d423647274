"""A tiny model folder: one token a byte, and a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sparsity_worker.echo.model import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

CONTEXT, SPECIAL = 512, ("<|end|>",)
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def tiny_tokenizer() -> Tokenizer:
    """One token a byte, and an end of text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tiny_model(folder: Path, context: int = CONTEXT) -> Path:
    """Writes the files that router and worker read."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"max_position_embeddings": context, "vocab_size": 257} | SHAPE
    (folder / "config.json").write_text(json.dumps(config))
    template = (
        "{% for m in messages %}"
        "{% if m.role == 'assistant' and loop.first %}{{ raise_exception('no user') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    return folder


def wordy_model(folder: Path, context: int = CONTEXT) -> Path:
    """As :func:`tiny_model`, with one token a word, and without a chat template."""
    tiny_model(folder, context)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "y": 1, "hi": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").unlink()
    return folder


def tiny_weights(folder: Path, family: str = "llama", positions: int = 2048, head_dim: int = 8) -> Path:
    """As :func:`tiny_model`, with random weights that transformers loads: of `llama` or `qwen2`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    kind, of = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[family]
    torch.manual_seed(0)
    # Weights large enough that attention prefers some keys to others.
    plain = {"vocab_size": 257, "intermediate_size": 64, "initializer_range": 0.3, "eos_token_id": 256}
    shape = SHAPE | {"hidden_size": SHAPE["num_attention_heads"] * head_dim}
    config = kind(max_position_embeddings=positions, **plain, **shape)
    tiny_model(folder)
    of(config).save_pretrained(folder)
    return folder


def taught(folder: Path, words: Sequence[str]) -> Path:
    """Gives a model of :func:`tiny_weights` a token for each of these words, and follows it with the next one."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.get_vocab_size()
    added = tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    assert added == len(words), "one of them is a token already"
    tokenizer.save(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(first + len(words), mean_resizing=False)
    read, said = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for at in range(len(words)):
            read[first + at] = torch.zeros(read.shape[1])
            # So much that no layer adds to it what would be noticed; elsewhere such a token is as likely as others.
            read[first + at, at] = 1000.0
            if at:
                said[first + at] = torch.zeros(said.shape[1])
                said[first + at, at - 1] = 3.0
    model.save_pretrained(folder)
    return folder
