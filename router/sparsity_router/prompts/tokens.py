"""The served model's tokenizer and chat template, without transformers."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from tokenizers import Tokenizer

from sparsity_router.prompts.control import ControlTokens

ROLES = ("system", "user", "assistant")


class ModelTokenizer:
    """Counts and encodes prompts exactly as the workers' model does.

    Raises:
        ConfigurationError: when the model folder cannot be read.
    """

    def __init__(self, model_path: Path) -> None:
        try:
            data = (model_path / "tokenizer.json").read_bytes()
            config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_buffer(data)
            self.context_length = int(config["max_position_embeddings"])
            self.vocabulary_size = int(config["vocab_size"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"--model: {model_path}: {type(error).__name__}: {error}") from error
        except Exception as error:  # the Rust tokenizer raises bare Exception
            raise ConfigurationError(f"--model: {model_path / 'tokenizer.json'}: {error}") from error
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.control = ControlTokens(token.content for token in added if token.special)
        self.name = model_path.name
        self.config: dict[str, Any] = config
        self.digest = hashlib.sha256(data).hexdigest()
        self._template, self._special = _load_template(model_path)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``; ``special`` adds what the model puts around plain text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """What a scan must see of ``ids``: special tokens included, and what is read without them."""
        return self.control.to_scan(self.decode_written(ids))

    def decode_written(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def render(self, chat: inference_pb2.ChatPrompt) -> str:
        """The chat as the model expects it, up to where it answers; control tokens in it are the template's alone.

        Raises:
            InvalidRequestError: when the model has no chat template, or the messages do not fit it.
        """
        if self._template is None:
            raise InvalidRequestError.of("chat", f"model {self.name} has no chat template; send text or token_ids")
        for number, message in enumerate(chat.messages):
            if message.role not in ROLES:
                problem = f"must be one of {', '.join(ROLES)}, not {reprlib.repr(message.role)}"
                raise InvalidRequestError.of(f"chat.messages[{number}].role", problem)
        messages = [
            {"role": message.role, "content": self.control.as_text(message.content)} for message in chat.messages
        ]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except jinja2.TemplateError as error:
            raise InvalidRequestError.of("chat.messages", f"the model's chat template refuses them: {error}") from error


def _load_template(model_path: Path) -> tuple[jinja2.Template | None, dict[str, Any]]:
    config_path, template_path = model_path / "tokenizer_config.json", model_path / "chat_template.jinja"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    source = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
    special = {name: config[name] for name in ("bos_token", "eos_token") if isinstance(config.get(name), str)}
    if not isinstance(source, str):
        return None, special

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source), special
