"""Options of the loop: how long, how precise, which optimizer, what is written when and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how precisely is trained."""

    GROUP: ClassVar[str] = "Training"

    max_train_steps: int = option(1600, help="number of optimizer steps", minimum=1, off=(0,))
    max_train_epochs: int | None = option(help="number of epochs; wins over --max_train_steps", minimum=1)
    gradient_accumulation_steps: int = option(1, help="batches that make one optimizer step", minimum=1)
    max_grad_norm: float = option(1.0, help="largest norm of the gradient, 0 for no limit", minimum=0)
    seed: int | None = option(help="seed of everything random; without it one is drawn and logged", minimum=0)
    max_nonfinite_steps: int = option(
        10, help="steps in a row with a loss or gradients that are not finite, after which the run ends", minimum=1
    )
    mixed_precision: str = option(
        "no",
        help="compute precision; frozen weights are kept in it too",
        choices=("no", "fp16", "bf16"),
        off=(False,),
    )
    full_fp16: bool = option(False, help="keep what learns in fp16 too: little memory, coarse steps", on_resume="same")
    full_bf16: bool = option(False, help="keep what learns in bf16 too: little memory, coarse steps", on_resume="same")
    gradient_checkpointing: bool = option(False, help="save memory by computing activations again in the backward pass")
    fused_backward_pass: bool = option(
        False,
        help="save the memory of gradients: AdamW or AdaFactor updates each weight as soon as its gradient is there;"
        " --max_grad_norm then limits each weight's gradient by itself",
    )

    def problems(self) -> Iterator[UserError]:
        for precision in ("fp16", "bf16"):
            if getattr(self, f"full_{precision}") and self.mixed_precision != precision:
                yield UserError(
                    f"--full_{precision} with --mixed_precision {self.mixed_precision}",
                    hint=f"give --mixed_precision {precision} too",
                )
        if self.fused_backward_pass and self.gradient_accumulation_steps > 1:
            yield UserError(
                f"--fused_backward_pass with --gradient_accumulation_steps {self.gradient_accumulation_steps}:"
                " there is nothing to accumulate in",
                hint="leave one of them out, or raise --train_batch_size",
            )
        if self.fused_backward_pass and self.mixed_precision == "fp16":
            yield UserError(
                "--fused_backward_pass with --mixed_precision fp16, whose scaled gradients are checked all together",
                hint="use bf16 or no",
            )
