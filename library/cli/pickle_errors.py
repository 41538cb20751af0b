"""What `torch.load` raises for files that are damaged, truncated, or not PyTorch files."""

from __future__ import annotations

import pickle
import struct

# found by trying damaged files: `torch.load` checks little, so that any of these can come up
DAMAGED_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)
