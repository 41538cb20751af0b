"""Options of the validation loss and of sample images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option
from library.cli.parser import Options
from library.training.evaluation.samplers import SAMPLER_NAMES, sampler_row


@dataclass(frozen=True)
class ValidationOptions:
    """The validation loss, on held-out images (`--validation_split`)."""

    GROUP: ClassVar[str] = "Validation"

    validate_every_n_steps: int | None = option(help="compute the validation loss every N steps", minimum=1)
    validate_every_n_epochs: int | None = option(
        help="compute it every N epochs (default: every epoch, unless --validate_every_n_steps is given)", minimum=1
    )
    max_validation_steps: int | None = option(
        help="compute it on the first N batches of held-out images only; the same ones each time", minimum=1
    )

    @property
    def epochs_between(self) -> int | None:
        """Epochs from one validation to the next; None where only steps count."""
        return self.validate_every_n_epochs or (None if self.validate_every_n_steps else 1)

    @property
    def is_enabled(self) -> bool:
        return bool(self.validate_every_n_steps or self.validate_every_n_epochs or self.max_validation_steps)


def validation_options(options: Options) -> ValidationOptions:
    """Those of a run; the defaults where it has no images that could be held out."""
    return options.get(ValidationOptions) or ValidationOptions()


@dataclass(frozen=True)
class SampleOptions:
    """Sample images generated during training."""

    GROUP: ClassVar[str] = "Sample images"

    sample_prompts: str | None = option(help="file of prompts: .txt with one per line, .toml or .json", metavar="FILE")
    sample_every_n_steps: int | None = option(help="generate sample images every N steps", minimum=1)
    sample_every_n_epochs: int | None = option(help="generate sample images every N epochs; overrides steps", minimum=1)
    sample_at_first: bool = option(False, help="generate sample images before training too")
    sample_sampler: str = option(
        "ddim", help="sampler of the sample images, for prompts that name none", choices=SAMPLER_NAMES
    )

    @property
    def draws_during_training(self) -> bool:
        """Whether the run generates sample images at some time."""
        return bool(self.sample_every_n_steps or self.sample_every_n_epochs or self.sample_at_first)

    @property
    def sampler(self) -> str:
        """The row of `SAMPLERS` that is used."""
        return sampler_row(self.sample_sampler)

    def check(self) -> Iterator[str]:
        """Options that have no effect, or another one than they say."""
        if self.draws_during_training and self.sample_prompts is None:
            yield "no sample images are generated: --sample_prompts is missing"
