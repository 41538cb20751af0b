"""Converts a model to another format, or shows what a file of weights contains (--inspect)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from library.cli.checks import Check, Findings
from library.cli.entry import run_entry
from library.cli.errors import UserError, UserErrors
from library.cli.options import option
from library.cli.parser import Options, parse_options
from library.models.families import model_problems
from library.models.layouts.formats import (
    FOLDER_FORMAT,
    FORMATS,
    format_by_name,
    target_problem,
)
from library.models.options import MetadataOptions, ModelOptions
from library.models.weights.path_checks import SINGLE_FILE_ENDINGS, about_flag

if TYPE_CHECKING:
    from library.models.reading.opened import OpenedModel
    from library.models.weights.inspection import Inspection

logger = logging.getLogger(__name__)

PROGRAM = "python -m library.models.convert"
_PRECISIONS = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class ConvertOptions:
    """Source, destination, format and precision."""

    GROUP: ClassVar[str] = "Conversion"

    source: str | None = option(
        positional=True,
        required=True,
        help="the model: a .safetensors or .ckpt file, a Diffusers folder, or a name on the Hub (owner/name)",
    )
    destination: str | None = option(
        positional=True, required=True, help="where to write: a name ending in .safetensors or .ckpt, or a new folder"
    )
    format: str | None = option(
        help=f"format to write (default: by the ending of DESTINATION; for a folder {FOLDER_FORMAT})",
        choices=tuple(FORMATS),
    )
    save_precision: str | None = option(
        help="data type of the weights (default: that of the source)", choices=tuple(_PRECISIONS)
    )
    vae: str | None = option(
        help="replace the VAE by this one: a VAE or a model, as a file, a folder or a name on the Hub"
    )
    v2: bool = option(False, help="the model is Stable Diffusion 2.x (detected; a contradiction is an error)")
    v_parameterization: bool = option(
        False, help="v-prediction: the model predicts v, where it does not say so or says noise"
    )
    overwrite: bool = option(False, help="replace what is at DESTINATION")
    inspect: bool = option(False, help="show what SOURCE contains, and write nothing", waives=("destination",))

    @property
    def model_options(self) -> ModelOptions:
        return ModelOptions(self.source, vae=self.vae, v2=self.v2, v_parameterization=self.v_parameterization)

    @property
    def chosen_format(self) -> str:
        """The format given by --format, else that of the destination's ending."""
        return self.format or format_by_name(Path(self.destination or ""))


def _check_destination(options: Options) -> Findings:
    convert = options[ConvertOptions]
    if convert.inspect or convert.destination is None:
        return
    path, ending = Path(convert.destination), FORMATS[convert.chosen_format].ending
    if ending and path.suffix.lower() != ending:
        yield UserError(f"--format {convert.format}: {path} does not end in {ending}", "change the one or the other")
    elif not ending and path.suffix.lower() in SINGLE_FILE_ENDINGS:
        hint = "end it in .safetensors or .ckpt, or in nothing"
        if convert.format:
            hint = f"give a name without an ending, or leave out --format {convert.format}"
        yield UserError(f"{path} is no name for a folder", hint)
    elif path.exists() and not convert.overwrite:
        yield UserError(f"{path} exists already", "give another name, or --overwrite to replace it")
    else:
        problem = target_problem(path, convert.chosen_format)
        if problem is not None:
            yield problem


def _check_source(options: Options) -> Findings:
    convert = options[ConvertOptions]
    return [] if convert.inspect else map(_about_source, model_problems(convert.model_options))


def _about_source(error: UserError) -> UserError:
    return about_flag("SOURCE", error)


def convert(argv: Sequence[str]) -> None:
    """Converts or inspects the model of a command line. Raises `UserError`."""
    options = parse_options(
        argv,
        (ConvertOptions, MetadataOptions),
        program=PROGRAM,
        description=__doc__ or "",
        checks=(Check("options", _check_source), Check("options", _check_destination)),
    )
    # heavy imports only now: --help and wrong options are answered without them
    from library.models.light_imports import import_diffusers
    from library.models.registry import inspect_model
    from library.models.weights.inspection import report_lines

    wanted = options[ConvertOptions]
    contents = inspect_model(str(wanted.source))
    if wanted.inspect:
        sys.stdout.write("\n".join(report_lines(contents)) + "\n")
    else:
        import_diffusers()
        _write(wanted, options[MetadataOptions], contents)


def _write(wanted: ConvertOptions, texts: MetadataOptions, contents: Inspection) -> None:
    import torch

    model = _read(wanted.model_options)
    path = Path(str(wanted.destination))
    precision = _PRECISIONS.get(wanted.save_precision or "") or _main_type(contents)
    metadata = model.metadata(texts, contents.metadata, path.stem)
    try:
        model.save(path, format=wanted.chosen_format, dtype=getattr(torch, precision), metadata=metadata)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}", "check the path and the space left on the disk"
        ) from error
    logger.info("saved %s (%s, %s)", path, wanted.chosen_format, precision)


def _read(options: ModelOptions) -> OpenedModel:
    from library.models.registry import read_model

    try:
        return read_model(options)
    except UserErrors as errors:
        raise UserErrors(map(_about_source, errors.errors)) from errors
    except UserError as error:
        raise _about_source(error) from error


def _main_type(contents: Inspection) -> str:
    """The data type of most of the U-Net's weights; float32 where models cannot be saved in it."""
    sizes = contents.parts[0].num_bytes
    largest = max(sizes, key=lambda name: sizes[name])
    return largest if largest in _PRECISIONS.values() else "float32"


if __name__ == "__main__":
    sys.exit(run_entry(lambda: convert(sys.argv[1:])))
