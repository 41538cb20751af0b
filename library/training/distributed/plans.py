"""How a run is asked to share what learns out over its processes, and what cannot be shared out. Imports no torch.

It is asked by options (`--deepspeed --zero_stage 2`) or by accelerate: what `accelerate launch` is told, on its
command line or by its configuration file, arrives here in environment variables.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from library.cli.errors import UserError, raise_together
from library.training.distributed.options import DEEPSPEED_OPTIONS, ProcessOptions
from library.training.optimization.optimizer_table import find_optimizer
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions

_TRUE = ("1", "true", "yes", "on", "y", "t")
# ways of accelerate that are no ways of this program
_UNFIT = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_FSDP1_STRATEGIES = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD"}
# parts of a DeepSpeed configuration that are this program's own, and the options that stand for them
_OWN_SECTIONS = {
    "optimizer": "--optimizer_type",
    "scheduler": "--lr_scheduler",
    "gradient_clipping": "--max_grad_norm",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "--train_batch_size",
    "train_batch_size": "--train_batch_size",
    "fp16": "--mixed_precision",
    "bf16": "--mixed_precision",
}

_DEEPSPEED_VERSION = (0, 19, 8)  # the first that leaves such a step out in float32

# what they do to a number depends on no other, so that each process can step for its share
OPTIMIZERS = ("AdamW", "Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "SGD", "SGDNesterov", "Lion")


@dataclass(frozen=True)
class ZeroConfig:
    """ZeRO, by DeepSpeed ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 1910.02054).

    Stage 1 shares out the optimizer's state, 2 the gradients too, 3 the weights too.
    """

    stage: int
    offloads_optimizer: bool = False  # its state lies in the computer's memory, and it steps there
    offloads_params: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)  # of the section zero_optimization
    flag = "--deepspeed"

    @property
    def shares_weights(self) -> bool:
        return self.stage == 3


@dataclass(frozen=True)
class FSDPConfig:
    """Fully sharded data parallelism, by PyTorch's `fully_shard` (FSDP2): weights, gradients, optimizer's state."""

    frees_after_forward: bool = True  # and gathers again for the backward pass
    offloads: bool = False  # all of it lies in the computer's memory between its uses
    units: str = "whole"  # what is gathered at a time: "whole", "classes" or "size"
    unit_classes: tuple[str, ...] = ()  # none: those that the model says must not be split
    unit_size: int = 0  # parameters of which more make a unit
    flag = "FSDP"
    shares_weights = True


ShardingConfig = ZeroConfig | FSDPConfig


def sharding_config(options: ProcessOptions, environment: Mapping[str, str]) -> ShardingConfig | None:
    """What is asked for; None for processes that hold all of it. Raises `UserError` for what cannot be had."""
    for variable, name in _UNFIT.items():
        if _is_on(environment, variable):
            raise UserError(
                f"accelerate is configured for {name}: this program does not run under it",
                hint="choose several GPUs, DeepSpeed or FSDP in `accelerate config`",
            )
    if options.deepspeed or _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return _zero_plan(options, environment)
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        return _fsdp_plan(environment)
    return None


def without_effect(options: ProcessOptions, environment: Mapping[str, str], training: TrainingOptions) -> Iterator[str]:
    """What is given and does nothing, a line each."""
    is_deepspeed = options.deepspeed or _is_on(environment, "ACCELERATE_USE_DEEPSPEED")
    given = [f"--{name}" for name in DEEPSPEED_OPTIONS if getattr(options, name) not in (None, False)]
    if given and not is_deepspeed:
        yield f"{', '.join(given)} without --deepspeed: nothing is shared out by DeepSpeed"
    if is_deepspeed and options.zero3_init_flag:
        yield "--zero3_init_flag does nothing: each process loads the model before it is shared out"
    if is_deepspeed and options.zero3_save_16bit_model:
        yield "--zero3_save_16bit_model does nothing: saved files are whole anyway, in --save_precision"
    if is_deepspeed:
        for variable, flag in (
            ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps"),
            ("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm"),
        ):
            value, own = environment.get(variable), getattr(training, flag)
            if value not in (None, "", "auto") and _number(value) != own:
                yield f"accelerate's configuration says {value}, but --{flag} {own:g} is what counts"
    is_fsdp = not is_deepspeed and _is_on(environment, "ACCELERATE_USE_FSDP")
    if is_fsdp and _is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
        yield "accelerate's fsdp_activation_checkpointing does nothing: --gradient_checkpointing is for that"


def sharding_problems(
    plan: ShardingConfig,
    training: TrainingOptions,
    optimizer: OptimizerOptions,
    average: AverageOptions,
    compiles: bool,
) -> Iterator[UserError]:
    """What of the other options does not go with what learns lying in parts. `compiles`: `--torch_compile`."""
    name = optimizer.optimizer
    if find_optimizer(name) not in [find_optimizer(known) for known in OPTIMIZERS]:
        yield UserError(
            f"{plan.flag} with --optimizer_type {name}: it cannot step for a part of what learns",
            hint=f"use one of {', '.join(OPTIMIZERS)}",
        )
    if training.mixed_precision == "fp16":
        yield UserError(f"{plan.flag} with --mixed_precision fp16", hint="give --mixed_precision bf16, or no")
    if isinstance(plan, ZeroConfig) and training.full_bf16:
        yield UserError(
            f"{plan.flag} with --full_bf16: weights are kept in float32 here",
            hint="leave it out, and give --mixed_precision bf16; or use FSDP",
        )
    if training.fused_backward_pass:
        yield UserError(
            f"{plan.flag} with --fused_backward_pass: gradients are summed when all are there", hint="leave it out"
        )
    if compiles:
        yield UserError(f"{plan.flag} with --torch_compile", hint="leave it out")
    if average.ema and isinstance(plan, ZeroConfig) and plan.stage == 3:
        yield UserError(
            "--deepspeed --zero_stage 3 with --ema: the average would be of what is not there",
            hint="use --zero_stage 2, or FSDP",
        )


def _zero_plan(options: ProcessOptions, environment: Mapping[str, str]) -> ShardingConfig | None:
    config = _deepspeed_file(environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"))

    def chosen(name: str, variable: str, *keys: str) -> Any:
        """The option, or what the configuration file says, or accelerate's variable."""
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        own = getattr(options, name)
        return own if own is not None else value if value is not None else environment.get(variable)

    stage = chosen("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "stage")
    places = {
        what: chosen(f"{what}_device", f"ACCELERATE_DEEPSPEED_{what.upper()}_DEVICE", what, "device") or "none"
        for what in ("offload_optimizer", "offload_param")
    }
    stage = 2 if stage is None else _number(stage)
    more = {key: value for key, value in config.items() if key not in ("stage", *places) and value != "auto"}
    plan = ZeroConfig(stage, places["offload_optimizer"] == "cpu", places["offload_param"] == "cpu", more)
    raise_together([*_zero_problems(stage, places, options)])
    if stage == 0:
        return None
    return plan


def _zero_problems(stage: Any, places: Mapping[str, str], options: ProcessOptions) -> Iterator[UserError]:
    if stage not in (0, 1, 2, 3):
        yield UserError(f"--zero_stage {stage} is none of 0, 1, 2, 3", hint="2 is usual")
    for what, place in places.items():
        flag = f"--{what}_device {place}"
        lowest = 3 if what == "offload_param" else 1
        if place not in ("none", "cpu"):
            yield UserError(f"{flag}: this program offloads to the computer's memory alone", hint="give cpu, or none")
        elif place == "cpu" and stage in (0, 1, 2) and stage < lowest:
            yield UserError(f"{flag} with --zero_stage {stage}", hint=f"give --zero_stage {lowest}, or leave it out")
    for name in ("offload_optimizer_nvme_path", "offload_param_nvme_path"):
        if getattr(options, name) is not None:
            yield UserError(
                f"--{name}: this program offloads to the computer's memory alone",
                hint=f"give --{name.replace('nvme_path', 'device')} cpu",
            )
    if options.fp16_master_weights_and_gradients:
        yield UserError(
            "--fp16_master_weights_and_gradients: weights and gradients are kept in float32 here", hint="leave it out"
        )
    yield from _package_problems()


def _package_problems() -> Iterator[UserError]:
    needed = ".".join(map(str, _DEEPSPEED_VERSION))
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        yield UserError("--deepspeed needs the package deepspeed, which is not installed", hint="pip install deepspeed")
        return
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < _DEEPSPEED_VERSION:
        yield UserError(
            f"--deepspeed needs deepspeed {needed}; {version}, which is installed, applies steps that are not finite",
            hint="pip install -U deepspeed",
        )


def _deepspeed_file(path: str | None) -> dict[str, Any]:
    """The section zero_optimization of DeepSpeed's own configuration file, which accelerate's can name."""
    if path in (None, "", "none"):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise UserError(
            f"accelerate's deepspeed_config_file {path} cannot be read: {error.strerror}", hint="check its path"
        ) from None
    except ValueError as error:
        raise UserError(f"accelerate's deepspeed_config_file {path} is no JSON: {error}", hint="mend it") from None
    section = config.get("zero_optimization", {}) if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path} holds no section zero_optimization", hint="see DeepSpeed's documentation")
    problems = []
    for key, value in config.items():
        is_off = isinstance(value, dict) and value.get("enabled") in (False, "auto")
        if key in _OWN_SECTIONS and value != "auto" and not is_off:
            problems.append(UserError(f"{path} sets {key}", hint=f"take it out, and give {_OWN_SECTIONS[key]}"))
        elif key not in _OWN_SECTIONS and key not in ("zero_optimization", "steps_per_print", "wall_clock_breakdown"):
            problems.append(UserError(f"{path} sets {key}, which this program does not use", hint="take it out"))
    raise_together(problems)
    return section


def _fsdp_plan(environment: Mapping[str, str]) -> FSDPConfig | None:
    frees = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").upper()
    strategy = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
    if environment.get("FSDP_VERSION", "1") == "1":
        strategy = frees if frees in _FSDP1_STRATEGIES.values() else _FSDP1_STRATEGIES.get(strategy, strategy)
        if strategy == "NO_SHARD":
            return None
        if strategy not in ("FULL_SHARD", "SHARD_GRAD_OP"):
            raise UserError(
                f"accelerate is configured for FSDP with {strategy}, which this program does not know",
                hint="choose FULL_SHARD or SHARD_GRAD_OP, or fsdp_version 2",
            )
        frees = "TRUE" if strategy == "FULL_SHARD" else "FALSE"
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper()
    units = {"NO_WRAP": "whole", "TRANSFORMER_BASED_WRAP": "classes", "SIZE_BASED_WRAP": "size"}.get(policy)
    if units is None:
        raise UserError(
            f"accelerate is configured for FSDP with fsdp_auto_wrap_policy {policy}, which is not known",
            hint="choose TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP or NO_WRAP",
        )
    classes = environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return FSDPConfig(
        frees_after_forward=frees.lower() in _TRUE,
        offloads=_is_on(environment, "FSDP_OFFLOAD_PARAMS"),
        units=units,
        unit_classes=tuple(name.strip() for name in classes.split(",") if name.strip()),
        unit_size=int(_number(environment.get("FSDP_MIN_NUM_PARAMS", "0")) or 0),
    )


def _is_on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in _TRUE


def _number(text: Any) -> Any:
    """The number that a text or a value of a file is, or what it is."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return text
    return int(number) if number.is_integer() else number
