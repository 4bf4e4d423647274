"""The served model's tokenizer and chat template, without transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_serving.fields.defaults import Defaults
from sparsity_serving.fields.served import Served
from tokenizers import Tokenizer

from sparsity_router.prompts.chats.chat import Chat
from sparsity_router.prompts.chats.template import ChatTemplate
from sparsity_router.prompts.control import ControlTokens


class ModelTokenizer:
    """Counts and encodes prompts exactly as the workers' model does.

    Args:
        model_path: the model's folder.
        name: that it is served by; the folder's without it.

    Raises:
        ConfigurationError: when the folder cannot be read.
    """

    def __init__(self, model_path: Path, name: str = "") -> None:
        try:
            data = (model_path / "tokenizer.json").read_bytes()
            config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
            self.tokenizer = Tokenizer.from_buffer(data)
            self.context_length = int(config["max_position_embeddings"])
            self.vocabulary_size = int(config["vocab_size"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"--model: {model_path}: {type(error).__name__}: {error}") from error
        except Exception as error:  # the Rust tokenizer raises bare Exception
            raise ConfigurationError(f"--model: {model_path / 'tokenizer.json'}: {error}") from error
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.control = ControlTokens(token.content for token in added if token.special)
        self.served = Served(
            name or model_path.name, self.context_length, self.vocabulary_size, Defaults.read(model_path)
        )
        self.config: dict[str, Any] = config
        self.digest = hashlib.sha256(data).hexdigest()
        self.template = ChatTemplate.read(model_path)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``; ``special`` adds what the model puts around plain text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """What a scan must see of ``ids``: special tokens included, and what is read without them."""
        return self.control.opened(self.decode_written(ids)).scanned

    def decode_written(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def render(self, chat: Chat, *, plain: bool = False) -> str:
        """The chat as the model expects it, up to where it answers; control tokens in it are the template's alone.

        Args:
            chat: what its caller wrote.
            plain: whether it is known that no control token is written in it.

        Raises:
            InvalidRequestError: when the model has no chat template, or the messages do not fit it.
        """
        if self.template is None:
            problem = f"model {self.served.name} has no chat template; send text or token_ids"
            raise InvalidRequestError.of("chat", problem)
        return self.template.render(chat, None if plain else self.control.as_text)
