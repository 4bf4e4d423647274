"""What a policy tells requests by: conditions, literals, patterns."""

import sys
from types import ModuleType

# The CEL library imports its command line, which brings libraries of terminals: a quarter of a router's start.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))
