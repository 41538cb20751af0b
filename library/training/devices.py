"""The accelerator, mixed precision, and moving models to the device in their data types."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import nn

from library.cli.checks import Findings
from library.cli.errors import UserError
from library.cli.launcher import SHARDING_MODES
from library.cli.parser import Options
from library.data.config.options import InpaintingOptions
from library.diffusion.options import NoiseOptions
from library.models.devices import DTYPES, check_precision, default_kind
from library.models.family import LoadSettings
from library.models.options import MemoryOptions
from library.training.method import TrainingMethod
from library.training.options import TrainingOptions


def make_accelerator(mixed_precision: str, *, full: bool = False, timeout_minutes: int | None = None) -> Accelerator:
    """The accelerator of this process. Raises `UserError` when the device does not support the precision.

    `full`: trained parameters have that precision too. `timeout_minutes`: how long processes wait for each other.
    Removes the environment variables with which accelerate would shard models; `sharding_config` has read them.
    """
    check_precision(mixed_precision, default_kind())
    for variable, _ in SHARDING_MODES.values():  # accelerate would shard what it prepares: parallel strategies do that
        os.environ.pop(variable, None)
    waiting = [] if timeout_minutes is None else [InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))]
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # given as a plugin, which goes before accelerate's variable: it would divide losses by that number
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=waiting,
    )
    if full and mixed_precision == "fp16":
        accelerator.scaler = HalfGradScaler(accelerator.device.type)
    return accelerator


def set_numerics(training: TrainingOptions, device: torch.device) -> None:
    """Asks PyTorch for the kernels that `--allow_tf32` and `--deterministic` name; call before anything is computed."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if training.allow_tf32 else "highest")
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
    torch.use_deterministic_algorithms(training.deterministic)
    torch.backends.cudnn.deterministic = training.deterministic


@contextlib.contextmanager
def determinism_errors() -> Iterator[None]:
    """Turns PyTorch's error for an operation that has no deterministic algorithm into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(
            f"--deterministic: PyTorch has no deterministic algorithm of {operation} on this device",
            hint="leave --deterministic out, or the option that needs it",
        ) from None


def precision_findings(training: TrainingOptions, device: torch.device) -> Findings:
    """`--allow_tf32` where there are no such kernels."""
    if training.allow_tf32 and device.type != "cuda":
        yield f"--allow_tf32 does nothing on {device.type}: TF32 is a format of GPUs"


def memory_findings(options: MemoryOptions, device: torch.device) -> Findings:
    """Memory options that the device or the PyTorch version does not support."""
    if options.keeps_fp8_unet and device.type == "mps":
        flag = "--fp8_base" if options.fp8_base else "--fp8_base_unet"
        yield UserError(f"{flag}: this device does not support fp8", hint="leave it out")
    known = torch._dynamo.list_backends(exclude_tags=()) if options.compiles else []
    if options.compiles and options.dynamo_backend not in known:
        yield UserError(
            f"--dynamo_backend {options.dynamo_backend} is not available: this PyTorch has {', '.join(known)}",
            hint="choose one of these",
        )


class HalfGradScaler(torch.amp.GradScaler):
    """A gradient scaler (loss scaling) that accepts fp16 gradients, which PyTorch's own rejects."""

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def trained_dtype(training: TrainingOptions) -> torch.dtype:
    """The dtype of trained parameters: float32, unless `--full_fp16` or `--full_bf16` is given."""
    is_half = training.full_fp16 or training.full_bf16
    return DTYPES[training.mixed_precision] if is_half else torch.float32


def load_settings(options: Options, method: TrainingMethod, device: torch.device) -> LoadSettings:
    """How the model of a run is loaded: frozen parts in compute precision (`--mixed_precision`), trained in their own.

    A method that trains parts of the model saves all of it: the frozen parts that get rounded are kept as loaded too.
    """
    training, memory, inpainting = options[TrainingOptions], options[MemoryOptions], options.get(InpaintingOptions)
    frozen = DTYPES[training.mixed_precision]
    dtypes = {
        part: trained_dtype(training) if part in method.trained_parts else frozen for part in ("unet", "text_encoder")
    }
    dtypes["vae"] = torch.float32 if memory.no_half_vae else frozen
    rounded = {part for part, dtype in dtypes.items() if dtype != torch.float32}
    return LoadSettings(
        device,
        dtypes,
        kept_exact=frozenset(rounded - method.trained_parts) if method.trained_parts else frozenset(),
        channels_last=frozenset({"unet", "vae"} - method.trained_parts) if memory.channels_last else frozenset(),
        memory=memory,
        gradient_checkpointing=training.gradient_checkpointing,
        zero_terminal_snr=options[NoiseOptions].zero_terminal_snr,
        widens_for_inpainting=inpainting is not None and inpainting.train_inpainting and "unet" in method.trained_parts,
    )


def place_method(method: TrainingMethod, device: torch.device, training: TrainingOptions) -> None:
    """Moves the modules that a method trains to the device, their parameters in the dtype of trained ones.

    Buffers keep theirs: what a layer knows exactly, the alpha of LoRA, is not rounded.
    """
    for module in method.trainable_modules():
        # Diffusers' own `to` warns about modules to be kept in float32 even where there are none
        nn.Module.to(module, device)
        for param in module.parameters():
            if param.is_floating_point():
                param.data = param.data.to(trained_dtype(training))
