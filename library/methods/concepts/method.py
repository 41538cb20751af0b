"""The training method of concept LoRAs: an adapter network on the U-Net, which is switched on and off."""

from __future__ import annotations

from library.cli.errors import UserError
from library.methods.adapter import AdapterTraining
from library.methods.concepts.options import ConceptOptions
from library.models.family import ModelFamily

OFF, USUAL = 0.0, 1.0


class ConceptTraining(AdapterTraining):
    """Trains a network on the U-Net by what the model predicts without it."""

    def __init__(self, options: ConceptOptions):
        super().__init__(options)
        self._concepts = options

    def attach(self, family: ModelFamily, *, seed: int, default_learning_rate: float, checkpointing: bool) -> None:
        """Raises `UserError` for a network that cannot be switched off, too."""
        super().attach(family, seed=seed, default_learning_rate=default_learning_rate, checkpointing=checkpointing)
        if not hasattr(self._network, "set_multiplier"):
            raise UserError(
                f"--network_module {self._concepts.network_module} has no set_multiplier: it cannot be switched off",
                hint="train with networks.lora",
            )

    def set_multiplier(self, multiplier: float) -> None:
        """The factor of the network's update; 0 is the model alone."""
        self._network.set_multiplier(multiplier)

    def metadata(self) -> dict[str, str]:
        return {
            **super().metadata(),
            "ss_max_denoising_steps": str(self._concepts.max_denoising_steps),
            "ss_leco_denoise_guidance_scale": str(self._concepts.leco_denoise_guidance_scale),
        }
