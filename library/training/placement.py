"""Where a loaded model lies while it is trained, and in which precision."""

from __future__ import annotations

import torch
from torch import nn

from library.models.family import ModelFamily
from library.models.options import MemoryOptions
from library.training.method import TrainingMethod
from library.training.options import TrainingOptions
from library.training.precision import DTYPES


def learning_dtype(training: TrainingOptions) -> torch.dtype:
    """What learns stays in float32, unless `--full_fp16` or `--full_bf16` is given."""
    is_half = training.full_fp16 or training.full_bf16
    return DTYPES[training.mixed_precision] if is_half else torch.float32


def place_model(
    family: ModelFamily,
    method: TrainingMethod,
    training: TrainingOptions,
    memory: MemoryOptions,
    device: torch.device,
) -> None:
    """Moves a model to the device: frozen parts in the precision of the computation, those that learn in theirs.

    A method that trains parts of the model saves all of it: of frozen parts that are rounded now, exact copies are
    kept for that.
    """
    frozen = DTYPES[training.mixed_precision]
    dtypes = {
        part: learning_dtype(training) if part in method.learning_parts else frozen
        for part in ("unet", "text_encoder")
    }
    dtypes["vae"] = torch.float32 if memory.no_half_vae else frozen
    if method.learning_parts:
        rounded = {part for part, dtype in dtypes.items() if dtype != torch.float32}
        family.keep_for_saving(sorted(rounded - method.learning_parts))
    family.place(device, **dtypes)


def place_method(method: TrainingMethod, device: torch.device, training: TrainingOptions) -> None:
    """Moves what learns to the device."""
    for module in method.trainable_modules():
        # Diffusers' own `to` warns of parts to be kept in float32 even where there are none
        nn.Module.to(module, device, learning_dtype(training))
