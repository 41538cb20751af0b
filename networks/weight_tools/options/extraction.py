"""Options of the tool that extracts a LoRA from two models. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.models.families import model_problems
from library.models.options import ModelOptions
from library.models.weights.path_checks import about_flag
from networks.weight_tools.options.files import (
    PRECISIONS,
    device_option,
    precision_option,
    save_to_option,
    target_problems,
)
from networks.weight_tools.options.merging import no_metadata_option

_MODEL = "a file, a Diffusers folder or a name on the Hub"
_ONE_LAYER_AT_A_TIME = "no effect: weights are read layer by layer, in the precision that they are stored in"


@dataclass(frozen=True)
class ExtractOptions:
    """Which models are compared, and the LoRA that is made of their difference."""

    GROUP: ClassVar[str] = "Extraction"

    model_org: str | None = option(help=f"original model: {_MODEL}", required=True, metavar="PATH")
    model_tuned: str | None = option(help=f"fine-tuned model: {_MODEL}", required=True, metavar="PATH")
    save_to: str | None = save_to_option()
    save_precision: str | None = precision_option("float")
    dim: int = option(4, help="rank (dim) of the LoRA", minimum=1)
    conv_dim: int | None = option(
        help="rank of the layers of 3x3 convolutions (default: the LoRA has none of them)", minimum=1
    )
    clamp_quantile: float = option(
        0.99,
        help="quantile that larger values of lora_down and lora_up are clamped to, 0 to 1; 1: none, which is the best"
        " approximation",
        above=0,
        maximum=1,
    )
    min_diff: float = option(
        0.01,
        help="leave out a text encoder none of whose weights differ by more than this",
        minimum=0,
    )
    no_metadata: bool = no_metadata_option()
    v2: bool = option(False, help="the models are Stable Diffusion 2.x (detected; a contradiction is an error)")
    v_parameterization: bool = option(False, help="v-prediction: the models predict v, where they do not say so")
    sdxl: bool = option(False, help="the models are Stable Diffusion XL (detected; a contradiction is an error)")
    device: str | None = device_option()
    load_precision: str | None = option(
        help="data type that models are loaded in", choices=PRECISIONS, inert=_ONE_LAYER_AT_A_TIME
    )
    load_original_model_to: str | None = option(
        help="device that the original model is loaded to", metavar="DEVICE", inert=_ONE_LAYER_AT_A_TIME
    )
    load_tuned_model_to: str | None = option(
        help="device that the fine-tuned model is loaded to", metavar="DEVICE", inert=_ONE_LAYER_AT_A_TIME
    )

    @property
    def target(self) -> Path:
        assert self.save_to is not None  # it is required
        return Path(self.save_to)

    @property
    def models(self) -> dict[str, ModelOptions]:
        """The two models, by their flags."""
        given = {"--model_org": self.model_org, "--model_tuned": self.model_tuned}
        return {
            flag: ModelOptions(path, v2=self.v2, v_parameterization=self.v_parameterization)
            for flag, path in given.items()
        }

    def check(self) -> Iterator[UserError]:
        for flag, model in self.models.items():
            yield from (about_flag(flag, error) for error in model_problems(model))
        yield from target_problems(self.save_to)
