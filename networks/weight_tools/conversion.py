"""Converts LoRA and DoRA files between our form, which web UIs read, and that of Diffusers and PEFT."""

from __future__ import annotations

import logging
from pathlib import Path

from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome
from library.models.devices import DTYPES
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.modelspec import kept_entries
from networks.adapters.files import save_adapter
from networks.adapters.formats.peft import METADATA_KEY, own_form, peft_form
from networks.adapters.weights import LORA_FILE, parts_by_layer
from networks.weight_tools.adapter_kinds import refuse_other_kinds
from networks.weight_tools.options.conversion import ConvertOptions

logger = logging.getLogger(__name__)


def convert_file(options: ConvertOptions, outcome: Outcome) -> None:
    """Writes the file in the form that it does not have, or in the one that `--form` names."""
    file = open_weights(Path(options.source))
    own = own_form(file.tensors, file.metadata, file.path)
    is_own = own is file.tensors
    form = options.form or ("diffusers" if is_own else "webui")
    refuse_other_kinds(own, options.source)
    layers = parts_by_layer(own, LORA_FILE, options.source)
    tensors = peft_form(own, options.source) if form == "diffusers" else dict(own)
    if (form == "webui") == is_own:
        logger.warning("%s has the form that --form %s asks for already", options.source, form)
    metadata = {key: value for key, value in kept_entries(file.metadata).items() if key != METADATA_KEY}
    dtype = None if options.save_precision is None else DTYPES[options.save_precision]
    try:
        save_adapter(options.target, tensors, dtype, metadata)
    except OSError as error:
        raise UserError(
            f"--save_to {options.target} cannot be written: {error.strerror or error}",
            "check the path and the space on the disk",
        ) from error
    outcome.done = len(layers)
    logger.info("saved %s in the form of %s", options.target, "Diffusers" if form == "diffusers" else "web UIs")
