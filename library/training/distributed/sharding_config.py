"""Reads and checks how trained parameters are sharded over the processes, by FSDP. Imports no torch.

It comes from options (`--deepspeed --zero_stage 2`) or from accelerate: what `accelerate launch` is given, on its
command line or in its configuration file, arrives here in environment variables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from library.cli.errors import UserError, raise_together
from library.cli.launcher import is_on, sharding_settings
from library.training.distributed.options import DEEPSPEED_OPTIONS, ProcessOptions
from library.training.optimization.key_value_args import read_pairs
from library.training.optimization.optimizer_table import find_optimizer
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions

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
_OFFLOADING = ("offload_optimizer", "offload_param")  # keys of a DeepSpeed configuration; with _device, options
_DEEPSPEED = "--deepspeed"

# elementwise optimizers: each process can update its shard alone
OPTIMIZERS = ("AdamW", "Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "SGD", "SGDNesterov", "Lion")
# arguments of theirs that choose a kernel without an implementation for sharded tensors
_UNSHARDED_KERNELS = {"torch.optim.SGD": "fused", "lion_pytorch.Lion": "use_triton"}


@dataclass(frozen=True)
class ShardingConfig:
    """Fully sharded data parallel (FSDP2, `fully_shard`): weights, gradients and optimizer states are sharded.

    The stages of DeepSpeed's ZeRO ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 1910.02054)
    are carried out by it: between forward and backward pass, stages 1 and 2 keep the gathered weights, 3 frees them.
    """

    reshard_after_forward: bool = True  # frees gathered weights, and gathers them again in the backward pass
    offloads: bool = False  # all of it is in CPU memory while it is not used
    units: str = "whole"  # FSDP units: "whole", "classes" or "size"
    unit_classes: tuple[str, ...] = ()  # empty: the model's `_no_split_modules`
    unit_size: int = 0  # blocks with more parameters than this are units
    zero_stage: int | None = None  # where DeepSpeed was asked for

    @property
    def flag(self) -> str:
        """What the user asked for."""
        return "FSDP" if self.zero_stage is None else _DEEPSPEED

    def substitution(self) -> str | None:
        """The line that says what carries out `--deepspeed`."""
        if self.zero_stage is None:
            return None
        kept = "freed after the forward pass" if self.reshard_after_forward else "kept until the backward pass"
        place = ", and offloaded to CPU memory" if self.offloads else ""
        return (
            f"{_DEEPSPEED} (stage {self.zero_stage}) is carried out by PyTorch's FSDP2: weights, gradients and"
            f" optimizer states are sharded{place}; gathered weights are {kept}"
        )


def sharding_config(options: ProcessOptions, environment: Mapping[str, str]) -> ShardingConfig | None:
    """The sharding asked for; None where every process holds a full copy. Raises `UserError` for unsupported modes."""
    for variable, name in _UNSUPPORTED.items():
        if is_on(environment, variable):
            raise UserError(
                f"accelerate is configured for {name}, which is not supported",
                hint="choose several GPUs, DeepSpeed or FSDP in `accelerate config`",
            )
    deepspeed = _deepspeed_settings(options, environment)
    if deepspeed is not None:
        return deepspeed.config()
    fsdp = sharding_settings(environment, "fsdp")
    return None if fsdp is None else _fsdp_config(fsdp)


def process_findings(
    options: ProcessOptions, environment: Mapping[str, str], training: TrainingOptions
) -> Iterator[str]:
    """Options that have no effect, or another than their name says, one line each."""
    for variable, flag in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm"),
    ):
        value, own = environment.get(variable), getattr(training, flag)
        if value not in (None, "", "auto") and _number(value) != own:
            yield f"accelerate's configuration says {value}, but --{flag} {own:g} is used"
    deepspeed = _deepspeed_settings(options, environment)
    fsdp = sharding_settings(environment, "fsdp")
    if deepspeed is not None:
        yield from deepspeed.without_effect()
        return
    given = [f"--{name}" for name in DEEPSPEED_OPTIONS if getattr(options, name) is not None]
    if given:
        yield f"{', '.join(given)} without {_DEEPSPEED}: nothing is sharded by it"
    if fsdp is not None and is_on(fsdp, "fsdp_activation_checkpointing"):
        yield "accelerate's fsdp_activation_checkpointing does nothing: use --gradient_checkpointing"


def sharding_findings(
    config: ShardingConfig, training: TrainingOptions, optimizer: OptimizerOptions, compiles: bool
) -> Iterator[UserError]:
    """Options that cannot be combined with sharding. `compiles`: `--torch_compile`."""
    name = optimizer.optimizer
    row = find_optimizer(name)
    if row not in [find_optimizer(known) for known in OPTIMIZERS]:
        yield UserError(
            f"{config.flag} with --optimizer_type {name}: this optimizer does not support sharded parameters",
            hint=f"use one of {', '.join(OPTIMIZERS)}",
        )
    kernel = None if row is None else _UNSHARDED_KERNELS.get(row.path)
    if kernel is not None and read_pairs("--optimizer_args", optimizer.optimizer_args)[0].get(kernel):
        yield UserError(
            f"{config.flag} with --optimizer_args {kernel}=True: {name} has no such kernel for sharded parameters",
            hint="leave the argument out",
        )
    if training.full_fp16:
        yield UserError(
            f"{config.flag} with --full_fp16: gradients are not scaled in fp16 where they are sharded",
            hint="leave it out, or give --full_bf16 with --mixed_precision bf16",
        )
    if training.fused_backward_pass:
        yield UserError(
            f"{config.flag} with --fused_backward_pass: gradients are reduced after the backward pass",
            hint="leave it out",
        )
    if compiles:
        yield UserError(f"{config.flag} with --torch_compile", hint="leave it out")


@dataclass(frozen=True)
class _DeepSpeedSettings:
    """What `--deepspeed` asks for."""

    stage: int
    devices: Mapping[str, str]  # offload_optimizer, offload_param -> none, cpu or nvme
    unused: str | None  # of the configuration file: what nothing here reads

    def config(self) -> ShardingConfig | None:
        if self.stage == 0:
            return None
        return ShardingConfig(
            reshard_after_forward=self.stage == 3,
            offloads=any(device != "none" for device in self.devices.values()),
            units="classes",
            zero_stage=self.stage,
        )

    def without_effect(self) -> Iterator[str]:
        for what, device in self.devices.items():
            if device != "none" and self.stage == 0:
                yield f"--{what}_device {device} does nothing with --zero_stage 0: every process holds a full copy"
            elif device == "nvme":
                yield f"--{what}_device nvme: offloading is to CPU memory, not to disk"
        if self.unused is not None:
            yield self.unused


def _deepspeed_settings(options: ProcessOptions, environment: Mapping[str, str]) -> _DeepSpeedSettings | None:
    """None without DeepSpeed. Options go before the configuration file, and that before accelerate's other settings."""
    settings = sharding_settings(environment, "deepspeed")
    if settings is None and not options.deepspeed:
        return None
    settings = settings or {}
    path = settings.get("deepspeed_config_file", "none")
    section, unused = ({}, []) if path == "none" else _deepspeed_file(path)

    def chosen(name: str, in_file: Any) -> Any:
        own = getattr(options, name)
        return own if own is not None else in_file if in_file not in (None, "auto") else settings.get(name)

    stage = chosen("zero_stage", section.get("stage"))
    stage = 2 if stage is None else _number(stage)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"--zero_stage {stage} is not 0, 1, 2 or 3", hint="2 is usual")
    devices = {}
    for what in _OFFLOADING:
        entry = section.get(what)
        device = chosen(f"{what}_device", entry.get("device") if isinstance(entry, dict) else None) or "none"
        if device not in ("none", "cpu", "nvme"):
            raise UserError(f"--{what}_device {device} is not none, cpu or nvme", hint="give cpu, or none")
        devices[what] = device
    line = f"accelerate's deepspeed_config_file {path}: no effect of {', '.join(unused)}" if unused else None
    return _DeepSpeedSettings(stage, devices, line)


def _deepspeed_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """The section zero_optimization of a DeepSpeed configuration file, and the keys of the file that nothing reads."""
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
    problems, unused = [], []
    for key, value in config.items():
        is_off = value == "auto" or (isinstance(value, dict) and value.get("enabled") in (False, "auto"))
        if key in _OWN_SECTIONS and not is_off:
            problems.append(UserError(f"{path} sets {key}", hint=f"remove it, and use {_OWN_SECTIONS[key]}"))
        elif key not in _OWN_SECTIONS and key != "zero_optimization":
            unused.append(key)
    raise_together(problems)
    read = ("stage", *_OFFLOADING)
    return section, unused + [key for key, value in section.items() if key not in read and value != "auto"]


def _fsdp_config(settings: Mapping[str, str]) -> ShardingConfig | None:
    reshard = settings.get("fsdp_reshard_after_forward", "true").upper()
    strategy = settings.get("fsdp_sharding_strategy", "FULL_SHARD").upper()
    if settings.get("fsdp_version", "1") == "1":
        strategy = reshard if reshard in _FSDP1_STRATEGIES.values() else _FSDP1_STRATEGIES.get(strategy, strategy)
        if strategy == "NO_SHARD":
            return None
        if strategy not in ("FULL_SHARD", "SHARD_GRAD_OP"):
            raise UserError(
                f"accelerate is configured for FSDP with {strategy}, which is not supported",
                hint="choose FULL_SHARD or SHARD_GRAD_OP, or fsdp_version 2",
            )
        reshard = "TRUE" if strategy == "FULL_SHARD" else "FALSE"
    policy = settings.get("fsdp_auto_wrap_policy", "NO_WRAP").upper()
    units = {"NO_WRAP": "whole", "TRANSFORMER_BASED_WRAP": "classes", "SIZE_BASED_WRAP": "size"}.get(policy)
    if units is None:
        raise UserError(
            f"accelerate is configured for FSDP with fsdp_auto_wrap_policy {policy}, which is not supported",
            hint="choose TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP or NO_WRAP",
        )
    classes = settings.get("fsdp_transformer_layer_cls_to_wrap", "")
    return ShardingConfig(
        reshard_after_forward=is_on({"": reshard}, ""),
        offloads=is_on(settings, "fsdp_offload_params"),
        units=units,
        unit_classes=tuple(name.strip() for name in classes.split(",") if name.strip()),
        unit_size=int(_number(settings.get("fsdp_min_num_params", "0")) or 0),
    )


def _number(text: Any) -> Any:
    """The value as a number, or unchanged where it is none."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return text
    return int(number) if number.is_integer() else number
