"""Options of training with several processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option

_DDP = "accepted, and without effect: this program sums gradients itself, not by DistributedDataParallel"
_UNUSED = "accepted, and without effect"
_NVME = "refused: this program offloads to the computer's memory alone"


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
    deepspeed: bool = option(
        False,
        help="whole models: share what training needs out over the processes, by DeepSpeed's ZeRO; needs less memory in"
        " each",
        on_resume="unimportant",
    )
    zero_stage: int | None = option(
        help="what is shared out: 1, the optimizer's state; 2, gradients too; 3, weights too; 0, nothing (default:"
        " accelerate's configuration, or 2)",
        minimum=0,
        maximum=3,
        on_resume="unimportant",
    )
    offload_optimizer_device: str | None = option(
        help="cpu keeps the optimizer's state in the computer's memory, and steps there (default: accelerate's"
        " configuration, or none)",
        choices=("none", "cpu", "nvme"),
        on_resume="unimportant",
    )
    offload_optimizer_nvme_path: str | None = option(help=_NVME, metavar="FOLDER", on_resume="unimportant")
    offload_param_device: str | None = option(
        help="with --zero_stage 3, cpu keeps weights in the computer's memory between their uses (default: accelerate's"
        " configuration, or none)",
        choices=("none", "cpu", "nvme"),
        on_resume="unimportant",
    )
    offload_param_nvme_path: str | None = option(help=_NVME, metavar="FOLDER", on_resume="unimportant")
    zero3_init_flag: bool = option(
        False, help=f"{_UNUSED}: each process loads the model before it is shared out", on_resume="unimportant"
    )
    zero3_save_16bit_model: bool = option(
        False, help=f"{_UNUSED}: saved files are whole, in --save_precision", on_resume="unimportant"
    )
    fp16_master_weights_and_gradients: bool = option(
        False, help="refused: weights and gradients are kept in float32", on_resume="unimportant"
    )

    def without_effect(self) -> Iterator[str]:
        for name in ("ddp_gradient_as_bucket_view", "ddp_static_graph"):
            if getattr(self, name):
                yield f"--{name} does nothing: this program sums gradients itself"


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
