"""Options of concept LoRAs. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.checks import Check, Findings
from library.cli.errors import UserError
from library.cli.options import option
from library.diffusion.options import LossOptions, NoiseOptions
from library.methods.options import NetworkOptions
from library.models.options import PromptOptions
from library.training.context import Context


@dataclass(frozen=True)
class ConceptOptions(NetworkOptions):
    """The adapter network, and the prompts that it learns from."""

    GROUP: ClassVar[str] = "Concept LoRA"
    HOW_TO_FREEZE: ClassVar[str] = ""

    network_train_text_encoder_only: bool = option(
        False,
        help="train the text encoder's LoRA only",
        refused=("leaves the U-Net untrained, which alone learns concepts", "leave it out"),
    )
    prompts_file: str | None = option(
        help="TOML or YAML file of what is to be learnt: entries with a target, or sliders",
        required=True,
        metavar="FILE",
    )
    max_denoising_steps: int = option(
        40,
        help="number of timesteps N of the schedule on which the target is denoised; a step of training denoises 1 to"
        " N - 1 of them",
        minimum=2,
        maximum=1000,
    )
    leco_denoise_guidance_scale: float = option(
        3.0, help="guidance scale (CFG) with which the target is denoised, against `unconditional`"
    )

    @property
    def trains_text_encoder(self) -> bool:
        """Never: captions are encoded once."""
        return False

    def learning_rates(self, default: float) -> dict[str, float]:
        """The rate of the U-Net's layers, by the option that sets it."""
        return {"learning_rate": default} if self.unet_lr is None else {"unet_lr": self.unet_lr}

    def check(self) -> Iterator[UserError | str]:
        yield from super().check()
        rates = [*self.text_encoder_lr, self.learning_rate_te1, self.learning_rate_te2]
        if any(rate for rate in rates):
            yield "--text_encoder_lr does nothing: concepts are learnt by the U-Net alone"


def _without_effect(context: Context) -> Findings:
    """Options of runs on images that mean nothing where there are none."""
    noise, loss, prompts = context[NoiseOptions], context[LossOptions], context[PromptOptions]
    for flag, is_given, why in (
        ("--min_timestep", noise.min_timestep is not None, "the schedule of --max_denoising_steps decides"),
        ("--max_timestep", noise.max_timestep is not None, "the schedule of --max_denoising_steps decides"),
        ("--ip_noise_gamma", noise.ip_noise_gamma, "noise is only where denoising starts"),
        ("--adaptive_noise_scale", noise.adaptive_noise_scale, "there are no images whose mean it could follow"),
        ("--masked_loss", loss.masked_loss, "there are no images with masks"),
        ("--prior_loss_weight", loss.prior_loss_weight != 1, "give an entry of --prompts_file a weight"),
        ("--max_token_length", prompts.max_token_length != 75, "prompts are encoded whole, however long they are"),
    ):
        if is_given:
            yield f"{flag} does nothing here: {why}"


CHECKS: tuple[Check[Context], ...] = (Check("options", _without_effect),)
