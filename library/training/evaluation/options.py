"""Options of what is looked at while training: validation loss and sample images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option
from library.training.evaluation.samplers import DEFAULT_SAMPLER, SAMPLER_NAMES, SAMPLERS, sampler_row


@dataclass(frozen=True)
class ValidationOptions:
    """The loss on images that are held out (`--validation_split`)."""

    GROUP: ClassVar[str] = "Validation"

    validate_every_n_steps: int | None = option(help="measure the validation loss every so many steps", minimum=1)
    validate_every_n_epochs: int | None = option(
        help="measure it every so many epochs (default: every epoch, unless steps are given)", minimum=1
    )
    max_validation_steps: int | None = option(
        help="measure on the first so many batches of held-out images only; always the same ones", minimum=1
    )

    @property
    def epochs_between(self) -> int | None:
        """Epochs from one measurement to the next; None where only steps count."""
        return self.validate_every_n_epochs or (None if self.validate_every_n_steps else 1)

    @property
    def is_enabled(self) -> bool:
        return bool(self.validate_every_n_steps or self.validate_every_n_epochs or self.max_validation_steps)


@dataclass(frozen=True)
class SampleOptions:
    """Images drawn during training."""

    GROUP: ClassVar[str] = "Sample images"

    sample_prompts: str | None = option(help="text file of prompts, one a line", metavar="FILE")
    sample_every_n_steps: int | None = option(help="draw samples every so many steps", minimum=1)
    sample_every_n_epochs: int | None = option(help="draw samples every so many epochs; wins over steps", minimum=1)
    sample_at_first: bool = option(False, help="draw samples before training too")
    sample_sampler: str = option(
        "ddim", help=f"sampler; implemented so far: {', '.join(SAMPLERS)}", choices=SAMPLER_NAMES
    )

    @property
    def draws_during_training(self) -> bool:
        """Whether samples are asked for at some time of the run."""
        return bool(self.sample_every_n_steps or self.sample_every_n_epochs or self.sample_at_first)

    @property
    def sampler(self) -> str:
        """The row of `SAMPLERS` that draws."""
        return sampler_row(self.sample_sampler)

    def without_effect(self) -> Iterator[str]:
        """What was asked for and is not done, or is done otherwise."""
        if self.draws_during_training and self.sample_prompts is None:
            yield "no samples are drawn: --sample_prompts is missing"
        elif self.draws_during_training and self.sample_sampler not in SAMPLERS and self.sampler == DEFAULT_SAMPLER:
            yield f"--sample_sampler {self.sample_sampler} is not implemented yet: {self.sampler} draws"
