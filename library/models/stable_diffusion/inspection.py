"""What a Stable Diffusion 1.x or 2.x model consists of, without reading its weights."""

from __future__ import annotations

from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.reading.parts_inspection import inspect_parts
from library.models.stable_diffusion.detection import detect
from library.models.weights.checkpoint_files import WeightFile
from library.models.weights.inspection import Inspection


def inspect(source: DiffusersFolder | WeightFile) -> Inspection:
    """Version, prediction type, dimensions and contents; of a file's tensors, only shapes are used.

    Raises `UserError` for what cannot be read.
    """
    detected = detect(source)
    return inspect_parts(source, detected.layout, detected.prediction_type)
