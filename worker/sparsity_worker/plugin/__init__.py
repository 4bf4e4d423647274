"""The SGLang plugin: loaded by SGLang in each of its processes through the entry points in pyproject.toml."""
