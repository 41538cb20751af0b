"""`--dry_run`: how much room and memory a run would take, without training."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from library.models.family import ModelFamily
from library.training.checkpoints.options import OutputOptions
from library.training.distributed.strategy import all_params
from library.training.method import ParamGroup, TrainingMethod
from library.training.model_setup import set_training_mode
from library.training.monitoring.memory_meter import MemoryMeter, make_fake, weights_of
from library.training.monitoring.performance import peak_memory
from library.training.optimization.fused_backward import step_in_backward
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup

logger = logging.getLogger(__name__)

_GIB = 2**30
_TRIAL_SIDE = 128  # of the tensor on which an optimizer's states are measured; 8-bit ones keep small tensors whole


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device of a run."""

    weights: int
    training: int  # gradients, optimizer states, EMA
    peak: int

    @property
    def activations(self) -> int:
        """What the largest batch needs for its forward and backward pass, beside the rest."""
        return self.peak - self.weights - self.training


def report_dry_run(run: RunSetup, method: TrainingMethod, family: ModelFamily) -> None:
    """Logs the room on the disk and the estimate of memory. The model is of no use afterwards."""
    for line in _space_lines(run, method):
        logger.info("%s", line)
    set_training_mode(family, method)
    if run.options[TrainingOptions].dry_run_step:
        logger.info("%s", _measured_line(run, method, family))
    if run.context.sharding is not None:
        logger.info("memory: not estimated for sharded weights")
    else:
        logger.info("%s", _estimate_line(estimate_memory(run, method, family), run.accelerator.device))
    logger.info("--dry_run: nothing was trained or written")


def _space_lines(run: RunSetup, method: TrainingMethod) -> Iterator[str]:
    """How large a save is, and a warning where the disk has no room for one."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    folder = Path(run.options[OutputOptions].output_dir or ".").absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    yield f"the trained weights are {_size(size)}; {_size(free)} are free in {existing}"
    if free < 2 * size:
        logger.warning("the disk has no room for two saves: the new one is written before the old one goes")


def estimate_memory(run: RunSetup, method: TrainingMethod, family: ModelFamily) -> MemoryEstimate:
    """Computes two steps on the largest batch with tensors that have shapes and no data."""
    options, mode, meter = run.options, FakeTensorMode(allow_non_fake_inputs=True), MemoryMeter()
    modules = [family.unet, *family.text_encoders, family.vae, *method.trainable_modules()]
    groups = method.param_groups()
    replaced = make_fake(modules, mode)
    groups = [replace(group, params=[replaced[param] for param in group.params]) for group in groups]
    params = all_params(groups)
    weights = weights_of(modules)
    meter.hold(weights)
    num_weights = meter.now
    if options[TrainingOptions].fused_backward_pass:  # no gradient outlives its update
        for param in params:
            param.register_post_accumulate_grad_hook(_free_gradient)
    optimizer: torch.optim.Optimizer | None = make_optimizer(options[OptimizerOptions], groups)
    with mode, meter:
        _encode_images(run, family)
        for _ in range(2):
            _forward_and_backward(run, method, family)
            num_trained = meter.now - num_weights
            optimizer = _stepped(optimizer)
            for param in params:
                param.grad = None
    num_params = sum(param.numel() for param in params)
    kept = 4 * num_params if options[AverageOptions].ema else 0
    if optimizer is None or options[TrainingOptions].fused_backward_pass:
        kept += round(num_params * _state_bytes(options[OptimizerOptions]))
    return MemoryEstimate(num_weights, num_trained + kept, meter.peak + kept)


def _free_gradient(param: torch.Tensor) -> None:
    param.grad = None


def _stepped(optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer | None:
    """None where the optimizer looks at values, which are not there."""
    if optimizer is None:
        return None
    try:
        optimizer.step()
    except Exception:  # noqa: BLE001 - of any optimizer package
        return None
    return optimizer


def _state_bytes(options: OptimizerOptions) -> float:
    """Bytes of optimizer state for each parameter, from a step of its own on a small tensor."""
    param = nn.Parameter(torch.ones(_TRIAL_SIDE, _TRIAL_SIDE))
    optimizer = make_optimizer(options, [ParamGroup("trial", [param], options.learning_rate)])
    param.grad = torch.ones_like(param)
    optimizer.step()
    tensors = [value for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / param.numel()


def _encode_images(run: RunSetup, family: ModelFamily) -> None:
    """The VAE on the largest batch, or on as many images as are encoded at once for the cache."""
    largest, device = run.context.data.largest_batch, run.accelerator.device
    if not largest.num_encoded:
        return
    with torch.no_grad():
        pixels = torch.zeros(largest.num_encoded, 3, largest.height, largest.width, device=device)
        family.encode_images(pixels, [0] * largest.num_encoded)


def _forward_and_backward(run: RunSetup, method: TrainingMethod, family: ModelFamily) -> None:
    """A micro-batch of the largest size. Its values mean nothing."""
    largest, device, scale = run.context.data.largest_batch, run.accelerator.device, family.vae_scale
    shape = (largest.num_images, family.latent_channels, largest.height // scale, largest.width // scale)
    with run.accelerator.autocast():
        with nullcontext() if method.trains_text_encoders and largest.encodes_text else torch.no_grad():
            conditioning = family.encode_prompts(["a"] * largest.num_images)
        timesteps = torch.zeros(largest.num_images, dtype=torch.int64, device=device)
        prediction = family.predict(torch.ones(shape, device=device), timesteps, conditioning)
    prediction.float().square().mean().backward()


def _measured_line(run: RunSetup, method: TrainingMethod, family: ModelFamily) -> str:
    """Makes two steps on the largest batch, the first of which sets everything up, and says what the second took."""
    options, device = run.options, run.accelerator.device
    optimizer = make_optimizer(options[OptimizerOptions], method.param_groups())
    is_fused = options[TrainingOptions].fused_backward_pass
    if is_fused:
        step_in_backward(optimizer, options[TrainingOptions].max_grad_norm)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        start = time.perf_counter()
        _forward_and_backward(run, method, family)
        if not is_fused:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    what = "" if device.type == "cuda" else " of the process"
    peak = _size(peak_memory(device) * _GIB)
    return f"measured: {seconds:.2f} s for a micro-batch and a step, peak memory{what} {peak} on {device}"


def _estimate_line(estimate: MemoryEstimate, device: torch.device) -> str:
    parts = (
        f"weights {_size(estimate.weights)}, gradients and optimizer {_size(estimate.training)}, "
        f"activations {_size(estimate.activations)}"
    )
    line = f"memory: about {_size(estimate.peak)} at the peak on {device} ({parts})"
    if device.type != "cuda":
        return line
    total = torch.cuda.get_device_properties(device).total_memory
    return f"{line}; the GPU has {_size(total)}, of which CUDA itself takes some"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= 0.1 * _GIB else f"{num_bytes / 2**20:.1f} MiB"
