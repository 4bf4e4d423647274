"""Hooks into how SGLang chooses tokens: grammars and seeds."""
