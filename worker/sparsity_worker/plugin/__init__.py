"""The SGLang plugin: loaded by SGLang in each of its processes through the entry points in pyproject.toml."""

from typing import Final

BACKEND: Final = "sparsity"
"""The attention backend's name in SGLang's registry, and the plugin's entry-point name."""
CONFIG_KEY: Final = "sparsity_profile"
"""Where the model config carries the profile."""
PROBE_KEY: Final = "sparsity_probe"
"""Custom sampling parameter of the start-up probe: sparse whatever its length."""
REASONING_KEY: Final = "sparsity_reasoning"
"""Custom sampling parameter of a request whose reasoning decodes densely: the markers' token ids; none: all of it."""
MEASURE_KEY: Final = "sparsity_measure"
"""Custom sampling parameter of a request whose coverage is measured, too."""
FACTS_KEY: Final = "sparsity_facts"
"""Where `meta_info` of the probe says how the backend was set up, as JSON."""
REPORT_KEY: Final = "sparsity"
"""Where `meta_info` carries a request's packed account."""
