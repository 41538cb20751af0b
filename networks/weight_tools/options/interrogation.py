"""Options of the tool that shows what a LoRA's text encoder reacts to. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.models.families import model_problems
from library.models.options import ModelOptions
from library.models.weights.path_checks import about_flag
from networks.weight_tools.options.files import base_problems, device_option, source_problems
from networks.weight_tools.options.merging import MODEL_FLAG


@dataclass(frozen=True)
class InterrogateOptions:
    """Which LoRA is looked at, and on which model."""

    GROUP: ClassVar[str] = "Interrogation"

    sd_model: str | None = option(
        help="base model: a file, a Diffusers folder or a name on the Hub; its text encoder alone is read",
        required=True,
        metavar="PATH",
    )
    model: str | None = option(help="LoRA file to look at", required=True, metavar="FILE")
    batch_size: int = option(16, help="tokens that are encoded at once", minimum=1)
    clip_skip: int | None = option(
        help="clip skip: use the hidden states of the n-th text encoder layer from the end", minimum=1
    )
    v2: bool = option(False, help="the model is Stable Diffusion 2.x (detected; a contradiction is an error)")
    device: str | None = device_option()

    @property
    def source(self) -> str:
        assert self.model is not None  # it is required
        return self.model

    @property
    def model_options(self) -> ModelOptions:
        return ModelOptions(self.sd_model, v2=self.v2)

    def check(self) -> Iterator[UserError]:
        yield from (about_flag(MODEL_FLAG, error) for error in model_problems(self.model_options))
        if self.model is not None:
            yield from source_problems("--model", self.model)
            yield from base_problems("--model", [self.model], self.model_options)
