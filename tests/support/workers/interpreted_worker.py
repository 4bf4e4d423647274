"""`python -m support.workers.interpreted_worker ...` is `python -m sparsity_worker ...` in Triton's interpreter.

The processes that SGLang starts import the main module of the one that starts them, and so what stands here.
Needs TRITON_INTERPRET=1.
"""

from __future__ import annotations

import sys

from sparsity_worker.__main__ import main
from support.kernels.interpreter import spare_the_interpreter

spare_the_interpreter()

if __name__ == "__main__":
    sys.exit(main())
