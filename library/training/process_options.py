"""Options of training with several processes, and what is refused: a program that splits the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option

_DDP = "accepted, and without effect: this program sums gradients itself, not by DistributedDataParallel"
_DEEPSPEED = "refused: this program does not run under DeepSpeed"
# how accelerate's own configuration, and the options of its launcher, arrive here
_LAUNCHED_WITH = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


@dataclass(frozen=True)
class ProcessOptions:
    """Several processes that train together, as `accelerate launch` starts them."""

    GROUP: ClassVar[str] = "Several processes"

    ddp_timeout: int | None = option(
        help="minutes that a process waits for the others (default: PyTorch's, 10 between GPUs, 30 between CPUs)",
        minimum=1,
        metavar="MINUTES",
        on_resume="unimportant",
    )
    ddp_gradient_as_bucket_view: bool = option(False, help=_DDP, on_resume="unimportant")
    ddp_static_graph: bool = option(False, help=_DDP, on_resume="unimportant")
    deepspeed: bool = option(False, help=_DEEPSPEED)
    zero_stage: int | None = option(help=_DEEPSPEED, minimum=0, maximum=3)
    offload_optimizer_device: str | None = option(help=_DEEPSPEED, metavar="DEVICE")
    offload_optimizer_nvme_path: str | None = option(help=_DEEPSPEED, metavar="FOLDER")
    offload_param_device: str | None = option(help=_DEEPSPEED, metavar="DEVICE")
    offload_param_nvme_path: str | None = option(help=_DEEPSPEED, metavar="FOLDER")
    zero3_init_flag: bool = option(False, help=_DEEPSPEED)
    zero3_save_16bit_model: bool = option(False, help=_DEEPSPEED)
    fp16_master_weights_and_gradients: bool = option(False, help=_DEEPSPEED)

    def problems(self) -> Iterator[UserError]:
        given = [f"--{name}" for name in _DEEPSPEED_OPTIONS if getattr(self, name) not in (None, False)]
        if given:
            yield _refused(", ".join(given), "DeepSpeed")

    def without_effect(self) -> Iterator[str]:
        for name in ("ddp_gradient_as_bucket_view", "ddp_static_graph"):
            if getattr(self, name):
                yield f"--{name} does nothing: this program sums gradients itself"


_DEEPSPEED_OPTIONS = (
    "deepspeed",
    "zero_stage",
    "offload_optimizer_device",
    "offload_optimizer_nvme_path",
    "offload_param_device",
    "offload_param_nvme_path",
    "zero3_init_flag",
    "zero3_save_16bit_model",
    "fp16_master_weights_and_gradients",
)


def launch_problems(environment: Mapping[str, str]) -> Iterator[UserError]:
    """What `accelerate launch`, by its options or its configuration file, asks for and cannot have."""
    for variable, name in _LAUNCHED_WITH.items():
        if environment.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t"):
            yield _refused("accelerate is configured for " + name, name)


def _refused(what: str, name: str) -> UserError:
    return UserError(
        f"{what}: this program sums gradients itself and does not run under {name}",
        hint="leave it out; several processes share the work, and --optimizer_type AdamW8bit, --full_bf16 or, with one"
        " process, --fused_backward_pass save memory",
    )
