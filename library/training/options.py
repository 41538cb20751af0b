"""Options of the loop: how long, how precise, which optimizer, what is written when."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.training.lr_schedules import SCHEDULES
from library.training.optimizers import OPTIMIZERS, find_optimizer
from library.training.samplers import SAMPLERS
from library.training.trackers import TRACKERS


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how precisely is trained."""

    GROUP: ClassVar[str] = "Training"

    max_train_steps: int = option(1600, help="number of optimizer steps", minimum=1)
    max_train_epochs: int | None = option(help="number of epochs; wins over --max_train_steps", minimum=1)
    gradient_accumulation_steps: int = option(1, help="batches that make one optimizer step", minimum=1)
    max_grad_norm: float = option(1.0, help="largest norm of the gradient, 0 for no limit", minimum=0)
    seed: int | None = option(help="seed of everything random; without it one is drawn and logged", minimum=0)
    mixed_precision: str = option("no", help="precision of the frozen model", choices=("no", "fp16", "bf16"))
    full_fp16: bool = option(False, help="keep what learns in fp16 too: little memory, coarse steps")
    full_bf16: bool = option(False, help="keep what learns in bf16 too: little memory, coarse steps")
    gradient_checkpointing: bool = option(
        False, help="save memory by computing activations again in the backward pass"
    )

    def problems(self) -> Iterator[UserError]:
        for precision in ("fp16", "bf16"):
            if getattr(self, f"full_{precision}") and self.mixed_precision != precision:
                yield UserError(
                    f"--full_{precision} with --mixed_precision {self.mixed_precision}",
                    hint=f"give --mixed_precision {precision} too",
                )


def _warmup(value: Any) -> int | float:
    """A number of steps, or a share of all steps: 0.1 or 10%."""
    expected = ValueError("a whole number of steps, or a share of all steps such as 0.1 or 10%")
    text = str(value).strip()
    if re.fullmatch(r"\d+", text):
        return int(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text)
    if match is None:
        raise expected
    share = float(match[1]) / 100 if match[2] else float(match[1])
    if share > 1 or (share == 1 and not match[2]):
        raise expected
    return share


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer, learning rate and its schedule."""

    GROUP: ClassVar[str] = "Optimizer and learning rate"

    optimizer_type: str = option("AdamW", help=f"{' or '.join(OPTIMIZERS)}, in any case of letters", metavar="NAME")
    learning_rate: float = option(2e-6, help="learning rate of what has none of its own", minimum=0)
    lr_scheduler: str = option(
        "constant",
        help="course of the learning rate",
        choices=tuple(SCHEDULES),
    )
    lr_warmup_steps: float = option(
        0, help="steps in which the rate rises from 0; below 1 a share of all steps", parse=_warmup, metavar="STEPS"
    )

    def problems(self) -> Iterator[UserError]:
        if find_optimizer(self.optimizer_type) is None:
            yield UserError(
                f"--optimizer_type {self.optimizer_type} is not known", hint=f"give one of {', '.join(OPTIMIZERS)}"
            )
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            yield UserError(
                f"--lr_scheduler constant has no warm-up, but --lr_warmup_steps is {self.lr_warmup_steps}",
                hint="use --lr_scheduler constant_with_warmup",
            )


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and when."""

    GROUP: ClassVar[str] = "Output and saving"

    output_dir: str | None = option(help="folder for everything that is written", required=True, metavar="FOLDER")
    output_name: str = option("last", help="name of the files, without ending", metavar="NAME")
    save_precision: str = option("float", help="data type of saved weights", choices=("float", "fp16", "bf16"))
    save_every_n_epochs: int | None = option(help="save every so many epochs", minimum=1)
    save_every_n_steps: int | None = option(help="save every so many steps", minimum=1)
    save_state: bool = option(False, help="with every save, and at the end, save what --resume needs")
    resume: str | None = option(help="continue from this state folder", metavar="FOLDER")
    training_comment: str | None = option(help="a comment for the metadata", metavar="TEXT")
    no_metadata: bool = option(False, help="write only the metadata that other programs need to load the file")

    def problems(self) -> Iterator[UserError]:
        if "/" in self.output_name or "\\" in self.output_name or self.output_name in ("", ".", ".."):
            yield UserError(
                f"--output_name {self.output_name!r} is not a file name", hint="put the folder into --output_dir"
            )


@dataclass(frozen=True)
class SampleOptions:
    """Pictures drawn during training."""

    GROUP: ClassVar[str] = "Sample images"

    sample_prompts: str | None = option(help="text file of prompts, one a line", metavar="FILE")
    sample_every_n_steps: int | None = option(help="draw samples every so many steps", minimum=1)
    sample_every_n_epochs: int | None = option(help="draw samples every so many epochs; wins over steps", minimum=1)
    sample_at_first: bool = option(False, help="draw samples before training too")
    sample_sampler: str = option("ddim", help="sampler", choices=tuple(SAMPLERS))

    def problems(self) -> Iterator[UserError]:
        wanted = self.sample_every_n_steps or self.sample_every_n_epochs or self.sample_at_first
        if wanted and self.sample_prompts is None:
            yield UserError("samples are asked for without --sample_prompts", hint="give a file of prompts")


@dataclass(frozen=True)
class LoggingOptions:
    """Curves."""

    GROUP: ClassVar[str] = "Logging"

    logging_dir: str | None = option(help="folder for logs; switches them on", metavar="FOLDER")
    log_with: str = option("tensorboard", help="tracker", choices=tuple(TRACKERS))
    log_prefix: str = option("", help="start of the name of the log's sub-folder", metavar="TEXT")
