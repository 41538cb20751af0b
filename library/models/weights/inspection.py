"""What a file or folder of weights contains, from headers and shapes: no weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from library.cli.errors import plural

_MAX_VALUE_LENGTH = 100  # of metadata that is shown
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class PartContents:
    """One part of a model: its tensors, counted; bytes by data type."""

    title: str
    num_parameters: int
    num_tensors: int
    num_bytes: Mapping[str, int]
    dimensions: str = ""


@dataclass(frozen=True)
class Inspection:
    """The contents of a path. `kind`: the model family, or what else it is."""

    path: str
    kind: str
    parts: tuple[PartContents, ...]
    metadata: Mapping[str, str]
    prediction: str | None = None


def count_tensors(title: str, tensors: Mapping[str, torch.Tensor], dimensions: str = "") -> PartContents:
    """Counts the tensors and parameters of a part, without reading them."""
    num_parameters, num_bytes = 0, Counter[str]()
    for tensor in tensors.values():
        num_parameters += tensor.numel()
        num_bytes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.dtype.itemsize
    return PartContents(title, num_parameters, len(tensors), num_bytes, dimensions)


def report_lines(inspection: Inspection) -> Iterator[str]:
    """The inspection as text for a terminal."""
    yield f"{inspection.path}: {inspection.kind}"
    if inspection.prediction is not None:
        yield f"  predicts {inspection.prediction}"
    for part in inspection.parts:
        types = ", ".join(f"{name} ({_short(size)}B)" for name, size in part.num_bytes.items())
        count = _short(part.num_parameters).strip()
        yield f"  {part.title}: {count} parameters in {plural(part.num_tensors, 'tensor')}, {types}"
        if part.dimensions:
            yield f"    {part.dimensions}"
    yield "  metadata:" if inspection.metadata else "  no metadata"
    for key, value in sorted(inspection.metadata.items()):
        shown = (
            value if len(value) <= _MAX_VALUE_LENGTH else f"{value[:_MAX_VALUE_LENGTH]}... ({len(value)} characters)"
        )
        yield f"    {key}: {shown}"


def _short(number: int) -> str:
    """1234567 as "1.23 M", with a unit or a space at the end."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} "
