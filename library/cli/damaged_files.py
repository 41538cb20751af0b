"""What readers (`torch.load`, NumPy, Pillow, zipfile) raise for files that are damaged or not of their kind."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib

# found by trying damaged files: these readers check little, so that any of these can come up
DAMAGED_FILE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def file_error_reason(error: BaseException) -> str:
    """Why a file could not be read, for a message: the system's words, or those of the reader."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
