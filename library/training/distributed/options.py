"""Options of training with several processes: DDP, DeepSpeed ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option

_DDP = "accepted without effect: gradients are all-reduced without DistributedDataParallel (DDP)"
_UNUSED = "accepted without effect"
_NVME = "rejected: offloading is to CPU memory only"


@dataclass(frozen=True)
class ProcessOptions:
    """Training with several processes, as `accelerate launch` starts them."""

    GROUP: ClassVar[str] = "Several processes"

    ddp_timeout: int | None = option(
        help="timeout in minutes when a process waits for the others (default: PyTorch's, 10 for GPUs, 30 for CPUs)",
        minimum=1,
        metavar="MINUTES",
        on_resume="unimportant",
    )
    ddp_gradient_as_bucket_view: bool = option(False, help=_DDP, on_resume="unimportant")
    ddp_static_graph: bool = option(False, help=_DDP, on_resume="unimportant")
    deepspeed: bool = option(
        False,
        help="shard optimizer state, gradients and weights over processes with DeepSpeed ZeRO (full fine-tuning only)",
        on_resume="unimportant",
    )
    zero_stage: int | None = option(
        help="what ZeRO shards: 1, optimizer states; 2, gradients too; 3, weights too; 0, nothing (default:"
        " accelerate's configuration, or 2)",
        minimum=0,
        maximum=3,
        on_resume="unimportant",
    )
    offload_optimizer_device: str | None = option(
        help="cpu: offload optimizer states to CPU memory, and run the optimizer there (default: accelerate's"
        " configuration, or none)",
        choices=("none", "cpu", "nvme"),
        on_resume="unimportant",
    )
    offload_optimizer_nvme_path: str | None = option(help=_NVME, metavar="FOLDER", on_resume="unimportant")
    offload_param_device: str | None = option(
        help="cpu, with --zero_stage 3: offload weights to CPU memory while they are not used (default: accelerate's"
        " configuration, or none)",
        choices=("none", "cpu", "nvme"),
        on_resume="unimportant",
    )
    offload_param_nvme_path: str | None = option(help=_NVME, metavar="FOLDER", on_resume="unimportant")
    zero3_init_flag: bool = option(
        False, help=f"{_UNUSED}: each process loads the full model before sharding", on_resume="unimportant"
    )
    zero3_save_16bit_model: bool = option(
        False, help=f"{_UNUSED}: saved files are never sharded, and are in --save_precision", on_resume="unimportant"
    )
    fp16_master_weights_and_gradients: bool = option(
        False, help="rejected: weights and gradients are kept in float32", on_resume="unimportant"
    )

    def without_effect(self) -> Iterator[str]:
        for name in ("ddp_gradient_as_bucket_view", "ddp_static_graph"):
            if getattr(self, name):
                yield f"--{name} does nothing: gradients are all-reduced without DistributedDataParallel"


DEEPSPEED_OPTIONS = (
    "zero_stage",
    "offload_optimizer_device",
    "offload_optimizer_nvme_path",
    "offload_param_device",
    "offload_param_nvme_path",
    "zero3_init_flag",
    "zero3_save_16bit_model",
    "fp16_master_weights_and_gradients",
)
