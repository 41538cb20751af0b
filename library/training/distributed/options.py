"""Options of training with several processes: how long they wait, and how trained parameters are sharded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option

_DDP = "no effect: gradients are all-reduced without DistributedDataParallel (DDP)"
_NVME = "no effect: offloading is to CPU memory, not to disk"


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
    ddp_gradient_as_bucket_view: bool = option(
        False, help="let gradients be views of the buckets they are sent in", inert=_DDP, on_resume="unimportant"
    )
    ddp_static_graph: bool = option(
        False, help="assume that all steps use the same weights", inert=_DDP, on_resume="unimportant"
    )
    deepspeed: bool = option(
        False,
        help="shard weights, gradients and optimizer states over the processes (full fine-tuning only); carried out by"
        " PyTorch's FSDP2, without the package deepspeed",
        on_resume="unimportant",
    )
    zero_stage: int | None = option(
        help="with --deepspeed: 1 or 2, keep gathered weights between forward and backward pass; 3, free them and"
        " gather them again; 0, no sharding (default: accelerate's configuration, or 2)",
        minimum=0,
        maximum=3,
        on_resume="unimportant",
    )
    offload_optimizer_device: str | None = option(
        help="cpu: offload the shards of weights, gradients and optimizer states to CPU memory, and run the optimizer"
        " there; nvme is carried out as cpu (default: accelerate's configuration, or none)",
        choices=("none", "cpu", "nvme"),
        on_resume="unimportant",
    )
    offload_optimizer_nvme_path: str | None = option(
        help="folder for offloaded optimizer states", metavar="FOLDER", inert=_NVME, on_resume="unimportant"
    )
    offload_param_device: str | None = option(
        help="the same as --offload_optimizer_device: FSDP offloads both together",
        choices=("none", "cpu", "nvme"),
        on_resume="unimportant",
    )
    offload_param_nvme_path: str | None = option(
        help="folder for offloaded weights", metavar="FOLDER", inert=_NVME, on_resume="unimportant"
    )
    zero3_init_flag: bool = option(
        False,
        help="shard weights while they are loaded",
        inert="no effect: each process loads the full model before sharding",
        on_resume="unimportant",
    )
    zero3_save_16bit_model: bool = option(
        False,
        help="save gathered weights in 16 bits",
        inert="no effect: saved files are never sharded, and are in --save_precision",
        on_resume="unimportant",
    )
    fp16_master_weights_and_gradients: bool = option(
        False,
        help="keep trained weights and gradients in fp16",
        inert="no effect: they are kept in float32, or in bfloat16 with --full_bf16",
        on_resume="unimportant",
    )


DEEPSPEED_OPTIONS = ("zero_stage", "offload_optimizer_device", "offload_param_device")
