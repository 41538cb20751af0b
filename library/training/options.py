"""Options of the loop: how long, how precise, which optimizer, what is written when and where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.training.key_value_args import read_pairs
from library.training.optimizer_table import ALIASES, DEFAULT, OPTIMIZERS, find_optimizer, name_problems
from library.training.samplers import DEFAULT_SAMPLER, SAMPLER_NAMES, SAMPLERS, sampler_row
from library.training.saved_names import DEFAULT_NAME
from library.training.schedule_args import read_schedule_args
from library.training.schedule_classes import is_schedule_class
from library.training.schedule_curves import SCHEDULES

REPO_ID = r"\w[\w.-]*/\w[\w.-]*"  # of the Hugging Face Hub: owner/name


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
    full_fp16: bool = option(
        False, help="keep what learns in fp16 too: little memory, coarse steps", on_resume="same"
    )
    full_bf16: bool = option(
        False, help="keep what learns in bf16 too: little memory, coarse steps", on_resume="same"
    )
    gradient_checkpointing: bool = option(
        False, help="save memory by computing activations again in the backward pass"
    )
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


def _steps_or_share(value: Any) -> int | float:
    """A number of steps, or a share of all steps: 0.1 or 10%."""
    expected = ValueError("a whole number of steps, or a share of all steps such as 0.1 or 10%")
    text = str(value).strip()
    if isinstance(value, float) and value > 1 and value.is_integer():
        return int(value)
    if re.fullmatch(r"\d+", text):
        return int(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text)
    if match is None:
        raise expected
    share = float(match[1]) / 100 if match[2] else float(match[1])
    if share > 1 or (share == 1 and not match[2]):
        raise expected
    return share


def _schedule_name(value: Any) -> str:
    """A row of the table, or a class. `adafactor:0.001` has a first rate, which AdaFactor never uses."""
    name, colon, rate = str(value).partition(":")
    is_number = re.fullmatch(r"\d*\.?\d+([eE][-+]?\d+)?", rate) is not None
    if colon and name == "adafactor" and is_number:
        return name
    if colon or not (name in SCHEDULES or is_schedule_class(name)):
        raise ValueError(f"one of {', '.join(SCHEDULES)}, a class of torch.optim.lr_scheduler, or module.Class")
    return name


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer, learning rate and its schedule."""

    GROUP: ClassVar[str] = "Optimizer and learning rate"

    optimizer_type: str | None = option(
        help=f"{', '.join(OPTIMIZERS)}, or a class of torch.optim, in any case of letters; or module.Class"
        f" (default: {DEFAULT})",
        metavar="NAME",
    )
    optimizer_args: tuple[str, ...] = option(
        (), help="arguments of the optimizer, each as key=value: weight_decay=0.01 betas=.9,.999", metavar="KEY=VALUE",
        on_resume="kept",
    )  # fmt: skip
    use_8bit_adam: bool = option(False, help="the same as --optimizer_type AdamW8bit")
    use_lion_optimizer: bool = option(False, help="the same as --optimizer_type Lion")
    learning_rate: float = option(
        2e-6, help="learning rate of what has none of its own", minimum=0, on_resume="kept"
    )
    lr_scheduler: str = option(
        "constant",
        help="learning-rate schedule; a class of torch.optim.lr_scheduler, or module.Class, too",
        choices=tuple(SCHEDULES),
        parse=_schedule_name,
    )
    lr_scheduler_type: str | None = option(
        help="class that makes the course instead: one of torch.optim.lr_scheduler, or module.Class", metavar="CLASS"
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (), help="arguments of the schedule, each as key=value", aliases=("scheduler_args",), metavar="KEY=VALUE"
    )
    lr_warmup_steps: float = option(
        0,
        help="steps in which the rate rises from 0; below 1 a share of all steps",
        parse=_steps_or_share,
        metavar="STEPS",
    )
    lr_decay_steps: float = option(
        0,
        help="last steps, in which warmup_stable_decay falls; below 1 a share of all steps",
        parse=_steps_or_share,
        metavar="STEPS",
    )
    lr_scheduler_num_cycles: int = option(
        1,
        help="courses from high to low of cosine_with_restarts; half waves of cosine_with_min_lr"
        " and of the fall of warmup_stable_decay",
        minimum=1,
        off=(0,),
    )
    lr_scheduler_power: float = option(1.0, help="power of polynomial", minimum=0)
    lr_scheduler_timescale: int | None = option(
        help="steps over which inverse_sqrt falls to 1/sqrt(2); the warm-up, or 10000 without one", minimum=1
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        help="lowest rate of cosine_with_min_lr and warmup_stable_decay, as a share of the highest",
        minimum=0,
        maximum=1,
    )

    @property
    def schedule_class(self) -> str | None:
        """The class that makes the schedule, by either of its two options; None for a schedule of the table."""
        return self.lr_scheduler_type or (None if self.lr_scheduler in SCHEDULES else self.lr_scheduler)

    @property
    def optimizer(self) -> str:
        """The optimizer asked for, by `--optimizer_type` or by one of the older flags."""
        old = [name for flag, name in ALIASES.items() if getattr(self, flag)]
        return self.optimizer_type or (old[0] if old else DEFAULT)

    def problems(self) -> Iterator[UserError]:
        yield from self._optimizer_problems()
        yield from self._schedule_problems()

    def _optimizer_problems(self) -> Iterator[UserError]:
        asked = {f"--{flag}": name for flag, name in ALIASES.items() if getattr(self, flag)}
        if self.optimizer_type:
            asked[f"--optimizer_type {self.optimizer_type}"] = self.optimizer_type
        if len({name.lower() for name in asked.values()}) > 1:
            yield UserError(f"{' and '.join(asked)} name different optimizers", hint="keep one of them")
        yield from name_problems(self.optimizer)
        arguments, problems = read_pairs("--optimizer_args", self.optimizer_args)
        yield from problems
        if "lr" in arguments:
            yield UserError(
                f"--optimizer_args lr={arguments['lr']} is a learning rate",
                hint="give it as --learning_rate, or as the rate of a part",
            )
        row = find_optimizer(self.optimizer)
        if self.lr_warmup_steps and row is not None and not row.starts_at_zero:
            yield UserError(
                f"--optimizer_type {self.optimizer} cannot begin with a rate of 0, but --lr_warmup_steps is"
                f" {self.lr_warmup_steps}",
                hint="give --lr_warmup_steps 0",
            )

    def _schedule_problems(self) -> Iterator[UserError]:
        if self.lr_warmup_steps and (self.schedule_class or not SCHEDULES[self.lr_scheduler].has_warmup):
            name = f"_type {self.lr_scheduler_type}" if self.lr_scheduler_type else f" {self.lr_scheduler}"
            yield UserError(
                f"--lr_scheduler{name} has no warm-up, but --lr_warmup_steps is {self.lr_warmup_steps}",
                hint="give --lr_warmup_steps 0, or --lr_scheduler constant_with_warmup or another that has one",
            )
        if self.schedule_class:
            yield from read_pairs("--lr_scheduler_args", self.lr_scheduler_args)[1]
            return
        yield from read_schedule_args(self.lr_scheduler, self.lr_scheduler_args)[1]
        row = find_optimizer(self.optimizer)
        if self.lr_scheduler == "adafactor" and row is not None and row.own_rate is None:
            yield UserError(
                f"--lr_scheduler adafactor with --optimizer_type {self.optimizer}",
                hint="give --optimizer_type AdaFactor, or another --lr_scheduler",
            )
        if self.lr_scheduler == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None:
            yield UserError(
                "--lr_scheduler cosine_with_min_lr needs --lr_scheduler_min_lr_ratio",
                hint="give the lowest rate as a share of the highest, for instance 0.1",
            )


@dataclass(frozen=True)
class AverageOptions:
    """The moving average of the weights."""

    GROUP: ClassVar[str] = "Moving average of the weights (EMA)"

    ema: bool = option(False, help="keep a moving average of what is trained; samples, validation and saves use it")
    ema_decay: float = option(
        0.999, help="share of the average that each step leaves; 0.999 is a memory of 1000 steps", minimum=0
    )
    ema_start_step: int = option(0, help="step after which the average begins", minimum=0)

    def problems(self) -> Iterator[UserError]:
        if self.ema_decay >= 1:
            yield UserError(f"--ema_decay {self.ema_decay} never takes in a step", hint="give less than 1")

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        usual = AverageOptions()
        for name in ("ema_decay", "ema_start_step"):
            if getattr(self, name) != getattr(usual, name) and not self.ema:
                yield f"--{name} does nothing without --ema"


@dataclass(frozen=True)
class ValidationOptions:
    """The loss on pictures that are held out (`--validation_split`)."""

    GROUP: ClassVar[str] = "Validation"

    validate_every_n_steps: int | None = option(help="measure the validation loss every so many steps", minimum=1)
    validate_every_n_epochs: int | None = option(
        help="measure it every so many epochs (default: every epoch, unless steps are given)", minimum=1
    )
    max_validation_steps: int | None = option(
        help="measure on the first so many batches of held-out pictures only; always the same ones", minimum=1
    )

    @property
    def epochs_between(self) -> int | None:
        """Epochs from one measurement to the next; None where only steps count."""
        return self.validate_every_n_epochs or (None if self.validate_every_n_steps else 1)

    @property
    def is_asked_for(self) -> bool:
        return bool(self.validate_every_n_steps or self.validate_every_n_epochs or self.max_validation_steps)


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and when."""

    GROUP: ClassVar[str] = "Output and saving"

    output_dir: str | None = option(help="folder for everything that is written", required=True, metavar="FOLDER")
    output_name: str | None = option(
        help="name of the files, without ending (default: last, epoch-000001, at-step00000100)", metavar="NAME"
    )
    save_precision: str = option(
        "float", help="data type of saved weights", choices=("float", "fp16", "bf16"), off=(False, "none")
    )
    overwrite: bool = option(
        False, help="write over what an earlier run of this name has left", on_resume="unimportant"
    )
    save_every_n_epochs: int | None = option(help="save every so many epochs", minimum=1)
    save_every_n_steps: int | None = option(help="save every so many steps", minimum=1)
    save_n_epoch_ratio: int | None = option(help="save so often that there are at least so many saves", minimum=1)
    save_last_n_epochs: int | None = option(help="of the saves of epochs, keep the last so many", minimum=1)
    save_last_n_steps: int | None = option(
        help="of the saves of steps, keep those of the last so many steps", minimum=1
    )
    save_state: bool = option(False, help="with every save, and at the end, save what --resume needs")
    save_state_on_train_end: bool = option(False, help="save what --resume needs at the end")
    save_last_n_epochs_state: int | None = option(
        help="of the states of epochs, keep the last so many (default: as of the saves)", minimum=1
    )
    save_last_n_steps_state: int | None = option(
        help="of the states of steps, keep those of the last so many steps (default: as of the saves)", minimum=1
    )
    save_state_on_signal: bool = option(
        True, help="when Ctrl-C or SIGTERM ends the run, save what --resume needs"
    )
    resume: str | None = option(
        help="continue from this state folder; auto: from the newest in --output_dir, if there is one",
        metavar="FOLDER",
        on_resume="unimportant",
    )
    initial_epoch: int | None = option(help="begin with this epoch, counted from 1", minimum=1, on_resume="unimportant")
    initial_step: int | None = option(
        help="begin behind so many steps; wins over --initial_epoch", minimum=0, on_resume="unimportant"
    )
    skip_until_initial_step: bool = option(
        False,
        help="with --initial_step, begin at that very step, not with its epoch",
        on_resume="unimportant",
    )
    training_comment: str | None = option(help="a comment for the metadata", metavar="TEXT")
    no_metadata: bool = option(False, help="write only the metadata that other programs need to load the file")

    def problems(self) -> Iterator[UserError]:
        if "/" in self.name or "\\" in self.name or self.name in (".", ".."):
            yield UserError(
                f"--output_name {self.output_name!r} is not a file name", hint="put the folder into --output_dir"
            )

    @property
    def name(self) -> str:
        """What the run is called where a name is shown."""
        return self.output_name or DEFAULT_NAME

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        if self.skip_until_initial_step and self.initial_step is None and self.initial_epoch is None:
            yield "--skip_until_initial_step does nothing without --initial_step; a resumed run skips what it has done"


@dataclass(frozen=True)
class HubOptions:
    """Saves on the Hugging Face Hub. None of it changes what is learned."""

    GROUP: ClassVar[str] = "Hugging Face Hub"

    huggingface_repo_id: str | None = option(
        help="repository that every save is uploaded to; it is created if need be", metavar="OWNER/NAME",
        on_resume="unimportant",
    )  # fmt: skip
    huggingface_repo_type: str = option(
        "model", help="kind of the repository", choices=("model", "dataset", "space"), on_resume="unimportant"
    )
    huggingface_path_in_repo: str | None = option(
        help="folder of the repository to upload to (default: its root)", metavar="FOLDER", on_resume="unimportant"
    )
    huggingface_token: str | None = option(
        help="access token; without it HF_TOKEN or the login of hf auth login is used. It is written nowhere",
        metavar="TOKEN",
        secret=True,
        on_resume="unimportant",
    )
    huggingface_repo_visibility: str = option(
        "private",
        help="who sees a repository that is created: public, or anything else for private",
        parse=lambda value: "public" if value == "public" else "private",
        metavar="public|private",
        on_resume="unimportant",
    )
    save_state_to_huggingface: bool = option(False, help="upload states too", on_resume="unimportant")
    resume_from_huggingface: bool = option(
        False,
        help="--resume names a state on the Hub: OWNER/NAME/PATH, or OWNER/NAME/PATH:REVISION:KIND",
        on_resume="unimportant",
    )
    async_upload: bool = option(False, help="upload in the background while training goes on", on_resume="unimportant")

    @property
    def folder(self) -> str:
        """The folder in the repository, "" for its root."""
        return (self.huggingface_path_in_repo or "").strip("/")

    def problems(self) -> Iterator[UserError]:
        repo_id, folder = self.huggingface_repo_id, self.huggingface_path_in_repo
        if repo_id is not None and re.fullmatch(REPO_ID, repo_id, re.ASCII) is None:
            yield UserError(
                f"--huggingface_repo_id {repo_id} is not the name of a repository", hint="give it as OWNER/NAME"
            )
        if folder is not None and ("\\" in folder or {".", ".."} & set(folder.split("/"))):
            yield UserError(
                f"--huggingface_path_in_repo {folder} is not a folder of a repository",
                hint="separate its parts with /, without . and ..",
            )
        if self.huggingface_token is not None and re.fullmatch(r"[!-~]+", self.huggingface_token) is None:
            yield UserError(  # the Hub's library would show it in its error
                "--huggingface_token holds characters that no token has",
                hint="copy it again, or leave it out and log in with: hf auth login",
            )

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        if self.huggingface_repo_id is None:
            for name in ("save_state_to_huggingface", "async_upload", "huggingface_path_in_repo"):
                if getattr(self, name):
                    yield f"--{name} does nothing without --huggingface_repo_id OWNER/NAME"


@dataclass(frozen=True)
class SampleOptions:
    """Pictures drawn during training."""

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
