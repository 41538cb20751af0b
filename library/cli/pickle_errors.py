"""What PyTorch's reader of pickles raises on bytes that are damaged, cut off, or something else."""

from __future__ import annotations

import pickle
import struct

# found by feeding it damaged files: it checks little, and stumbles where the damage leads it
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
