"""What a process holds, as Linux counts it: resident, pages of mapped files included."""

from __future__ import annotations

from pathlib import Path

# the C library keeps freed blocks of up to 32 MB for later; these make it return those of 1 MB and more
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def resident() -> int:
    """Bytes now."""
    return _entry("VmRSS")


def peak() -> int:
    """The most bytes since the start of the process, or since `forget_peak`."""
    return _entry("VmHWM")


def forget_peak() -> None:
    """Counts the peak anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _entry(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
