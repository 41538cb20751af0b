"""Reads and checks the sharding configuration (ZeRO or FSDP). Imports no torch.

It comes from options (`--deepspeed --zero_stage 2`) or from accelerate: what `accelerate launch` is given, on its
command line or in its configuration file, arrives here in environment variables.
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
# modes of accelerate that are not supported
_UNSUPPORTED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_FSDP1_STRATEGIES = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD"}
# sections of a DeepSpeed configuration that are options of this program instead
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

_DEEPSPEED_VERSION = (0, 19, 8)  # the first that skips steps with non-finite gradients in float32

# elementwise optimizers: each process can update its shard alone
OPTIMIZERS = ("AdamW", "Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "SGD", "SGDNesterov", "Lion")


@dataclass(frozen=True)
class ZeroConfig:
    """DeepSpeed ZeRO ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 1910.02054).

    Stage 1 shards optimizer states, stage 2 gradients too, stage 3 weights too.
    """

    stage: int
    offloads_optimizer: bool = False  # optimizer states are in CPU memory, and the optimizer runs there
    offloads_params: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)  # further settings of the section zero_optimization
    flag = "--deepspeed"

    @property
    def shares_weights(self) -> bool:
        return self.stage == 3


@dataclass(frozen=True)
class FSDPConfig:
    """Fully sharded data parallel (FSDP2, `fully_shard`): weights, gradients and optimizer states are sharded."""

    frees_after_forward: bool = True  # and gathers weights again in the backward pass
    offloads: bool = False  # all of it is in CPU memory while it is not used
    units: str = "whole"  # FSDP units: "whole", "classes" or "size"
    unit_classes: tuple[str, ...] = ()  # empty: the model's `_no_split_modules`
    unit_size: int = 0  # blocks with more parameters than this are units
    flag = "FSDP"
    shares_weights = True


ShardingConfig = ZeroConfig | FSDPConfig


def sharding_config(options: ProcessOptions, environment: Mapping[str, str]) -> ShardingConfig | None:
    """The sharding asked for; None where every process holds a full copy. Raises `UserError` for unsupported modes."""
    for variable, name in _UNSUPPORTED.items():
        if _is_on(environment, variable):
            raise UserError(
                f"accelerate is configured for {name}, which is not supported",
                hint="choose several GPUs, DeepSpeed or FSDP in `accelerate config`",
            )
    if options.deepspeed or _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return _zero_config(options, environment)
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        return _fsdp_config(environment)
    return None


def without_effect(options: ProcessOptions, environment: Mapping[str, str], training: TrainingOptions) -> Iterator[str]:
    """Options that have no effect, one line each."""
    is_deepspeed = options.deepspeed or _is_on(environment, "ACCELERATE_USE_DEEPSPEED")
    given = [f"--{name}" for name in DEEPSPEED_OPTIONS if getattr(options, name) not in (None, False)]
    if given and not is_deepspeed:
        yield f"{', '.join(given)} without --deepspeed: DeepSpeed is not used"
    if is_deepspeed and options.zero3_init_flag:
        yield "--zero3_init_flag does nothing: each process loads the full model before sharding"
    if is_deepspeed and options.zero3_save_16bit_model:
        yield "--zero3_save_16bit_model does nothing: saved files are never sharded, and are in --save_precision"
    if is_deepspeed:
        for variable, flag in (
            ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps"),
            ("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm"),
        ):
            value, own = environment.get(variable), getattr(training, flag)
            if value not in (None, "", "auto") and _number(value) != own:
                yield f"accelerate's configuration says {value}, but --{flag} {own:g} is used"
    is_fsdp = not is_deepspeed and _is_on(environment, "ACCELERATE_USE_FSDP")
    if is_fsdp and _is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
        yield "accelerate's fsdp_activation_checkpointing does nothing: use --gradient_checkpointing"


def sharding_problems(
    plan: ShardingConfig,
    training: TrainingOptions,
    optimizer: OptimizerOptions,
    average: AverageOptions,
    compiles: bool,
) -> Iterator[UserError]:
    """Options that cannot be combined with sharding. `compiles`: `--torch_compile`."""
    name = optimizer.optimizer
    if find_optimizer(name) not in [find_optimizer(known) for known in OPTIMIZERS]:
        yield UserError(
            f"{plan.flag} with --optimizer_type {name}: this optimizer does not support sharded parameters",
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
            f"{plan.flag} with --fused_backward_pass: gradients are reduced after the backward pass",
            hint="leave it out",
        )
    if compiles:
        yield UserError(f"{plan.flag} with --torch_compile", hint="leave it out")
    if average.ema and isinstance(plan, ZeroConfig) and plan.stage == 3:
        yield UserError(
            "--deepspeed --zero_stage 3 with --ema: EMA is not supported with sharded weights (stage 3)",
            hint="use --zero_stage 2, or FSDP",
        )


def _zero_config(options: ProcessOptions, environment: Mapping[str, str]) -> ShardingConfig | None:
    config = _deepspeed_file(environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"))

    def chosen(name: str, variable: str, *keys: str) -> Any:
        """The option, else the value of the configuration file, else accelerate's environment variable."""
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        own = getattr(options, name)
        return own if own is not None else value if value is not None else environment.get(variable)

    stage = chosen("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "stage")
    devices = {
        what: chosen(f"{what}_device", f"ACCELERATE_DEEPSPEED_{what.upper()}_DEVICE", what, "device") or "none"
        for what in ("offload_optimizer", "offload_param")
    }
    stage = 2 if stage is None else _number(stage)
    more = {key: value for key, value in config.items() if key not in ("stage", *devices) and value != "auto"}
    plan = ZeroConfig(stage, devices["offload_optimizer"] == "cpu", devices["offload_param"] == "cpu", more)
    raise_together([*_zero_problems(stage, devices, options)])
    if stage == 0:
        return None
    return plan


def _zero_problems(stage: Any, devices: Mapping[str, str], options: ProcessOptions) -> Iterator[UserError]:
    if stage not in (0, 1, 2, 3):
        yield UserError(f"--zero_stage {stage} is not 0, 1, 2 or 3", hint="2 is usual")
    for what, device in devices.items():
        flag = f"--{what}_device {device}"
        lowest = 3 if what == "offload_param" else 1
        if device not in ("none", "cpu"):
            yield UserError(f"{flag}: offloading is to CPU memory only", hint="give cpu, or none")
        elif device == "cpu" and stage in (0, 1, 2) and stage < lowest:
            yield UserError(f"{flag} with --zero_stage {stage}", hint=f"give --zero_stage {lowest}, or leave it out")
    for name in ("offload_optimizer_nvme_path", "offload_param_nvme_path"):
        if getattr(options, name) is not None:
            yield UserError(
                f"--{name}: offloading is to CPU memory only",
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
            f"--deepspeed needs deepspeed {needed}; {version}, which is installed, applies non-finite (NaN, inf) steps",
            hint="pip install -U deepspeed",
        )


def _deepspeed_file(path: str | None) -> dict[str, Any]:
    """The section zero_optimization of a DeepSpeed configuration file, which accelerate's configuration can name."""
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
        raise UserError(
            f"accelerate's deepspeed_config_file {path} is not valid JSON: {error}", hint="fix the file"
        ) from None
    section = config.get("zero_optimization", {}) if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path} holds no section zero_optimization", hint="see DeepSpeed's documentation")
    problems = []
    for key, value in config.items():
        is_off = isinstance(value, dict) and value.get("enabled") in (False, "auto")
        if key in _OWN_SECTIONS and value != "auto" and not is_off:
            problems.append(UserError(f"{path} sets {key}", hint=f"remove it, and use {_OWN_SECTIONS[key]}"))
        elif key not in _OWN_SECTIONS and key not in ("zero_optimization", "steps_per_print", "wall_clock_breakdown"):
            problems.append(UserError(f"{path} sets {key}, which is not supported", hint="remove it"))
    raise_together(problems)
    return section


def _fsdp_config(environment: Mapping[str, str]) -> FSDPConfig | None:
    frees = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").upper()
    strategy = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
    if environment.get("FSDP_VERSION", "1") == "1":
        strategy = frees if frees in _FSDP1_STRATEGIES.values() else _FSDP1_STRATEGIES.get(strategy, strategy)
        if strategy == "NO_SHARD":
            return None
        if strategy not in ("FULL_SHARD", "SHARD_GRAD_OP"):
            raise UserError(
                f"accelerate is configured for FSDP with {strategy}, which is not supported",
                hint="choose FULL_SHARD or SHARD_GRAD_OP, or fsdp_version 2",
            )
        frees = "TRUE" if strategy == "FULL_SHARD" else "FALSE"
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper()
    units = {"NO_WRAP": "whole", "TRANSFORMER_BASED_WRAP": "classes", "SIZE_BASED_WRAP": "size"}.get(policy)
    if units is None:
        raise UserError(
            f"accelerate is configured for FSDP with fsdp_auto_wrap_policy {policy}, which is not supported",
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
    """The value as a number, or unchanged where it is none."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return text
    return int(number) if number.is_integer() else number
