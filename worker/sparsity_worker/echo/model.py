"""`python -m sparsity_worker.echo.model OUT`: what router and echo workers share in a model's place.

A byte-level tokenizer with a token for each byte, a chat template and a context length; no weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
ROLES = ("system", "user", "assistant")
CONTEXT = 131_072


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def role_token(role: str) -> str:
    """The token that opens a message of ``role``."""
    return f"<|{role}|>"


def write_echo_model(folder: Path) -> Path:
    """Writes the files that router and workers read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([END, *map(role_token, ROLES)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"max_position_embeddings": CONTEXT, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    message = f"<|{{{{ message.role }}}}|>{{{{ message.content }}}}{END}"
    opening = f"{{% if add_generation_prompt %}}{role_token('assistant')}{{% endif %}}"
    (folder / "chat_template.jinja").write_text(f"{{% for message in messages %}}{message}{{% endfor %}}{opening}")
    return folder


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_worker.echo.model", description=__doc__)
    parser.add_argument("out", type=Path)
    write_echo_model(parser.parse_args().out)


if __name__ == "__main__":
    main()
