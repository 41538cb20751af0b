"""Options of the training loop: number of steps, gradients, seed, and precision."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option


def random_seed() -> int:
    """A seed for a run that is given none."""
    return random.SystemRandom().randrange(2**31)


@dataclass(frozen=True)
class TrainingOptions:
    """Number of steps, gradients, seed, and precision."""

    GROUP: ClassVar[str] = "Training"

    max_train_steps: int = option(1600, help="number of optimizer steps", minimum=1, off=(0,))
    max_train_epochs: int | None = option(help="number of epochs; overrides --max_train_steps", minimum=1)
    gradient_accumulation_steps: int = option(
        1, help="number of batches per optimizer step (gradient accumulation)", minimum=1
    )
    max_grad_norm: float = option(1.0, help="gradient clipping: maximum gradient norm, 0 for none", minimum=0)
    seed: int | None = option(
        help="random seed; without it a random one is chosen and logged", minimum=0, drawn=random_seed
    )
    max_nonfinite_steps: int = option(
        10,
        help="end the run after this many steps in a row with a non-finite (NaN or inf) loss or gradients",
        minimum=1,
    )
    mixed_precision: str = option(
        "no",
        help="compute precision; frozen weights are stored in it too; where it is not given, that of accelerate's"
        " configuration or launcher",
        choices=("no", "fp16", "bf16"),
        off=(False,),
        variable="ACCELERATE_MIXED_PRECISION",
    )
    full_fp16: bool = option(
        False,
        help="store trained weights, gradients and optimizer states in fp16: saves memory, loses precision",
        on_resume="same",
    )
    full_bf16: bool = option(
        False,
        help="store trained weights, gradients and optimizer states in bf16: saves memory, loses precision",
        on_resume="same",
    )
    gradient_checkpointing: bool = option(False, help="save memory by recomputing activations in the backward pass")
    fused_backward_pass: bool = option(
        False,
        help="save the memory of gradients: AdamW or AdaFactor updates each weight as soon as its gradient is computed;"
        " --max_grad_norm then clips each weight's gradient separately",
    )
    allow_tf32: bool = option(
        False,
        help="compute float32 matrix products in TF32 on GPUs that have it: faster, with 10 bits of mantissa"
        " (convolutions do so by PyTorch's default; bf16 and fp16 are not affected)",
    )
    deterministic: bool = option(
        False,
        help="use deterministic algorithms alone, so that runs on one GPU are the same bit for bit; slower",
    )

    dry_run: bool = option(
        False,
        help="check everything, say what would be written and how much memory it would take, and stop",
        on_resume="unimportant",
    )
    dry_run_step: bool = option(
        False, help="with --dry_run, make one step on the device and measure it", on_resume="unimportant"
    )

    @property
    def length_flag(self) -> str:
        """The option that says how long the run is."""
        return "--max_train_steps" if self.max_train_epochs is None else "--max_train_epochs"

    def check(self) -> Iterator[UserError | str]:
        if self.dry_run_step and not self.dry_run:
            yield "--dry_run_step without --dry_run: does nothing"
        for precision in ("fp16", "bf16"):
            if getattr(self, f"full_{precision}") and self.mixed_precision != precision:
                yield UserError(
                    f"--full_{precision} with --mixed_precision {self.mixed_precision}",
                    hint=f"give --mixed_precision {precision} too",
                )
        if self.fused_backward_pass and self.gradient_accumulation_steps > 1:
            yield UserError(
                f"--fused_backward_pass with --gradient_accumulation_steps {self.gradient_accumulation_steps}:"
                " gradients are freed in each backward pass",
                hint="leave one of them out, or raise --train_batch_size",
            )
        if self.fused_backward_pass and self.mixed_precision == "fp16":
            yield UserError(
                "--fused_backward_pass with --mixed_precision fp16, which checks all scaled gradients together",
                hint="use bf16 or no",
            )
