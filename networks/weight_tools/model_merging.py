"""Merges LoRAs into the weights of a model."""

from __future__ import annotations

import logging
from pathlib import Path

from library.cli.errors import UserError, UserErrors
from library.cli.jobs.outcome import Outcome
from library.models.convert import model_metadata
from library.models.devices import DTYPES, choose_device
from library.models.family import ModelFamily
from library.models.layouts.formats import format_by_name
from library.models.options import MetadataOptions
from library.models.registry import inspect_model, load_family
from library.models.weights.path_checks import about_flag
from networks.lora import create_network_from_weights
from networks.weight_tools.merge_options import MODEL_FLAG, MergeOptions

logger = logging.getLogger(__name__)


def merge_into_model(options: MergeOptions, outcome: Outcome) -> None:
    """Writes the model with the updates of the LoRAs added to its weights. Raises `UserError` for layers it lacks."""
    device = choose_device(options.device)
    family = _load(options)
    roots = family.adapter_roots()
    encoders = roots.text_encoders[0] if len(roots.text_encoders) == 1 else list(roots.text_encoders)
    networks = [
        create_network_from_weights(ratio, path, family.vae, encoders, roots.unet, for_inference=True)[0]
        for path, ratio in options.files
    ]
    for network, (path, ratio) in zip(networks, options.files, strict=True):
        network.merge_to(encoders, roots.unet, dtype=DTYPES[options.precision], device=device)
        logger.info("merged %s, times %g", path, ratio)
        outcome.done += 1
    _save(family, options)


def _load(options: MergeOptions) -> ModelFamily:
    try:
        return load_family(options.model_options)
    except UserErrors as errors:
        raise UserErrors(about_flag(MODEL_FLAG, error) for error in errors.errors) from errors
    except UserError as error:
        raise about_flag(MODEL_FLAG, error) from error


def _save(family: ModelFamily, options: MergeOptions) -> None:
    target, metadata = options.target, {}
    if not options.no_metadata:
        sources = [
            Path(str(options.sd_model)).stem,
            *(f"{Path(path).stem} x {ratio:g}" for path, ratio in options.files),
        ]
        texts = MetadataOptions(metadata_merged_from=", ".join(sources))
        metadata = model_metadata(family, texts, inspect_model(str(options.sd_model)).metadata, target.stem)
    dtype = DTYPES[options.saved_precision]
    try:
        family.save(target, format=format_by_name(target), dtype=dtype, metadata=metadata)
    except OSError as error:
        raise UserError(
            f"--save_to {target} cannot be written: {error.strerror or error}",
            "check the path and the space left on the disk",
        ) from error
    logger.info("saved %s in %s", target, options.saved_precision)
