"""Options of the tools that merge LoRA files. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.models.families import model_problems
from library.models.layouts.formats import FORMATS, format_by_name, target_problem
from library.models.options import ModelOptions
from library.models.weights.path_checks import about_flag
from networks.weight_tools.options.block_weights import BlockWeights, parse_block_weights
from networks.weight_tools.options.files import (
    PRECISIONS,
    base_problems,
    device_option,
    precision_option,
    save_to_option,
    source_problems,
    target_problems,
)

MODEL_FLAG = "--sd_model"


def no_metadata_option() -> Any:
    return option(False, help="write no metadata but what programs need to use a LoRA: base model, ranks and alphas")


def merge_precision_option() -> Any:
    return option(
        "float", help="data type that merged weights are rounded to; they are computed in float", choices=PRECISIONS
    )


@dataclass(frozen=True)
class MergedFiles:
    """Which LoRA files are merged, and what their updates are multiplied by."""

    models: tuple[str, ...] = option((), help="LoRA files to merge", metavar="FILE", required=True)
    ratios: tuple[float, ...] = option(
        (), help="ratio of each of --models, which its update is multiplied by (default: 1 for each)"
    )
    lbws: tuple[str, ...] = option(
        (),
        help="block weights of each of --models: factors of BASE (text encoder), IN, MID and OUT blocks, 26 or 17"
        " numbers, of SDXL 20 or 12, with commas between them",
        metavar="NUMBERS",
    )

    @property
    def files(self) -> list[tuple[str, float]]:
        """Each LoRA file with its ratio; 1 where none are given."""
        return list(zip(self.models, self.ratios or [1.0] * len(self.models), strict=True))

    @property
    def block_weights(self) -> list[BlockWeights | None]:
        """Those of each file; None where they are not given. Raises `UserError`."""
        return [parse_block_weights(text) for text in self.lbws] or [None] * len(self.models)

    def problems_of_files(self) -> Iterator[UserError]:
        """What is wrong with the files, and with the number of what is given for each."""
        for path in self.models:
            yield from source_problems("--models", path)
        for flag, values, hint in (
            ("--ratios", self.ratios, "give one ratio for each file"),
            ("--lbws", self.lbws, "give the block weights of each file, without blanks or in quotes"),
        ):
            if values and self.models and len(values) != len(self.models):
                yield UserError(f"{flag} has {len(values)} values, --models {len(self.models)} files", hint)
        try:
            _ = self.block_weights
        except UserError as error:
            yield error


@dataclass(frozen=True)
class MergeOptions(MergedFiles):
    """Which LoRA files are merged, and into what."""

    GROUP: ClassVar[str] = "Merging"

    sd_model: str | None = option(
        help="base model to merge them into: a file, a Diffusers folder or a name on the Hub; without it they are"
        " merged into one LoRA",
        metavar="PATH",
    )
    save_to: str | None = option(
        help="what to write: a .safetensors or .ckpt file; for a model a new folder too (Diffusers)",
        required=True,
        metavar="PATH",
    )
    precision: str = merge_precision_option()
    save_precision: str | None = precision_option("that of --precision")
    concat: bool = option(
        False, help="concatenate the ranks of LoRAs: exactly the sum of their updates, at a rank that is the sum too"
    )
    shuffle: bool = option(False, help="shuffle the ranks of each layer, which changes no update")
    no_metadata: bool = no_metadata_option()
    v2: bool = option(False, help="the model is Stable Diffusion 2.x (detected; a contradiction is an error)")
    device: str | None = device_option()

    @property
    def target(self) -> Path:
        assert self.save_to is not None  # it is required
        return Path(self.save_to)

    @property
    def saved_precision(self) -> str:
        return self.save_precision or self.precision

    @property
    def model_options(self) -> ModelOptions:
        return ModelOptions(self.sd_model, v2=self.v2)

    def check(self) -> Iterator[UserError | str]:
        yield from self.problems_of_files()
        if self.sd_model is None:
            yield from target_problems(self.save_to)
        else:
            yield from (about_flag(MODEL_FLAG, error) for error in model_problems(self.model_options))
            yield from self._model_target_problems()
            yield from base_problems("--models", self.models, self.model_options)

    def _model_target_problems(self) -> Iterator[UserError | str]:
        for flag in ("concat", "shuffle"):
            if getattr(self, flag):
                yield f"--{flag} has no effect with {MODEL_FLAG}: updates are added to the weights exactly"
        if self.save_to is None:
            return
        name = format_by_name(self.target)
        if not FORMATS[name].ending and self.target.suffix in (".pt", ".bin"):
            yield UserError(f"--save_to {self.target} is no name for a model", "end it in .safetensors or .ckpt")
            return
        problem = target_problem(self.target, name)
        if problem is not None:
            yield UserError(f"--save_to {problem.message}", problem.hint)


@dataclass(frozen=True)
class SVDMergeOptions(MergedFiles):
    """Which LoRA files are merged, and to which rank."""

    GROUP: ClassVar[str] = "Merging"

    save_to: str | None = save_to_option()
    precision: str = merge_precision_option()
    save_precision: str | None = precision_option("that of --precision")
    new_rank: int = option(4, help="rank (dim) of the merged LoRA", minimum=1)
    new_conv_rank: int | None = option(help="the same for 3x3 convolutions (default: --new_rank)", minimum=1)
    no_metadata: bool = no_metadata_option()
    device: str | None = device_option()

    @property
    def target(self) -> Path:
        assert self.save_to is not None  # it is required
        return Path(self.save_to)

    @property
    def saved_precision(self) -> str:
        return self.save_precision or self.precision

    def rank_of(self, is_spatial: bool) -> int:
        """The rank asked for, of 3x3 convolutions or of other layers."""
        return self.new_conv_rank if is_spatial and self.new_conv_rank is not None else self.new_rank

    def check(self) -> Iterator[UserError]:
        yield from self.problems_of_files()
        yield from target_problems(self.save_to)
