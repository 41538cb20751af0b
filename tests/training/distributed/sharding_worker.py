"""One of two processes that train a small model in every layout, beside a plain loop of one process.

    python -m torch.distributed.run --nproc-per-node 2 tests/training/distributed/sharding_worker.py FILE

writes into FILE, as JSON, what `tests/training/distributed/test_sharding.py` looks at.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from library.training.devices import make_accelerator
from library.training.distributed.options import ProcessOptions
from library.training.distributed.sharding_config import OPTIMIZERS, ShardingConfig, sharding_config
from library.training.distributed.strategy import ParallelStrategy, make_strategy
from library.training.method import ParamGroup
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.options import OptimizerOptions


def deepspeed(stage: int, **options: str) -> ShardingConfig | None:
    return sharding_config(ProcessOptions(deepspeed=True, zero_stage=stage, **options), {})


LAYOUTS = {
    "whole": None,
    "zero2": deepspeed(2),
    "zero3-offload": deepspeed(3, offload_optimizer_device="cpu"),
    "fsdp-whole": ShardingConfig(),
    "fsdp-blocks": ShardingConfig(units="classes", unit_classes=("Block",)),
    "fsdp-size": ShardingConfig(units="size", unit_size=100),
}
Change = Callable[[torch.Tensor], torch.Tensor]
MAX_NORM = 0.5
# of micro-batches in each step, over both processes: the last is an incomplete one
STEPS = (4, 4, 3, 4, 1)
ARGUMENTS = {"SGD": ("momentum=0.9", "weight_decay=0.01"), "RMSprop": ("momentum=0.5",), "AdamW": ("amsgrad=True",)}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(9, 17), nn.Linear(17, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(torch.tanh(self.into(x)))


class Net(nn.Module):
    """Odd sizes, which two processes cannot halve; the last layer stays as it is.

    `skips`: one parameter is left out for some inputs, as parts of networks can be, another for all.
    """

    _no_split_modules = ["Block"]

    def __init__(self, skips: bool = False):
        super().__init__()
        self.never = nn.Parameter(torch.ones(3)) if skips else None
        self.at_times = nn.Parameter(torch.ones(9)) if skips else None
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(1))
        self.last = nn.Linear(9, 5)
        self.last.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.at_times is not None and x.sum() > 0:
            x = x * self.at_times
        for block in self.blocks:
            x = block(x)
        return self.last(x) * self.scale


class Method:
    """As much of a training method as a strategy asks for."""

    def __init__(self, net: Net, other: nn.Module):
        self._modules = [net, other]

    def param_groups(self) -> list[ParamGroup]:
        net, other = self._modules
        learning = [param for param in net.parameters() if param.requires_grad]
        return [ParamGroup("net", learning, 0.02), ParamGroup("other", list(other.parameters()), 0.005)]

    def trainable_modules(self) -> list[nn.Module]:
        return self._modules


def modules(layout: str) -> tuple[Net, nn.Module]:
    """What learns; in parts each process needs each gradient."""
    torch.manual_seed(0)
    return Net(skips=layout == "whole"), nn.Linear(9, 9)


def micro_batches() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(4, 9, generator=generator) for _ in range(count)] for count in STEPS]


def options_of(name: str) -> OptimizerOptions:
    return OptimizerOptions(optimizer_type=name, optimizer_args=ARGUMENTS.get(name, ()))


class PlainLoop:
    """One process and an optimizer: what everything is compared with."""

    def __init__(self, layout: str, name: str):
        self.net, self.other = modules(layout)
        self.params = [param for param in self.net.parameters() if param.requires_grad] + list(self.other.parameters())
        groups = Method(self.net, self.other).param_groups()
        self.optimizer = make_optimizer(options_of(name), groups)
        self.norms: list[float] = []

    def step(self, batches: Sequence[torch.Tensor]) -> None:
        for x in batches:
            (self.net(self.other(x)).square().mean() / len(batches)).backward()
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM)))
        self.optimizer.step()
        self.optimizer.zero_grad()


class Shared:
    """The same by a strategy of the layout."""

    def __init__(
        self,
        accelerator: Accelerator,
        layout: str,
        name: str,
        weights: Mapping[str, torch.Tensor] | None = None,
    ):
        self.accelerator, self.layout = accelerator, layout
        self.net, self.other = modules(layout)
        if weights is not None:
            nn.ModuleDict({"net": self.net, "other": self.other}).load_state_dict(weights)
        self.strategy: ParallelStrategy = make_strategy(
            LAYOUTS[layout],
            accelerator,
            Method(self.net, self.other),
            lambda groups: make_optimizer(options_of(name), groups),
        )
        self.norms: list[float] = []

    def step(self, batches: Sequence[torch.Tensor], spoil: Change | None = None, *, overflows: bool = False) -> None:
        """As the trainer does it. `spoil`: what becomes of the first process's first loss.

        `overflows`: one number of the second process's gradients is infinite, and none of the first one's.
        """
        rank, count = self.accelerator.process_index, len(batches)
        mine = [*batches, *batches[-1:] * (count % 2)][rank::2]
        losses = []
        for index, x in enumerate(mine):
            loss = self.strategy.run(lambda x=x: self.net(self.other(x)).square().mean())
            loss = loss * (rank + 2 * index < count) / count
            if spoil is not None and rank == index == 0:
                loss = spoil(loss)
            self.strategy.backward(loss)
            losses.append(loss.detach())
        if overflows and rank == 1:
            self.strategy.groups[0].params[-1].grad.to_local().view(-1)[0] = math.inf
        norm = self.strategy.reduce_and_clip(MAX_NORM)
        self.norms.append(float(norm))
        total = self.accelerator.reduce(torch.stack(losses).sum(), reduction="sum")
        if torch.isfinite(norm) and torch.isfinite(total):
            self.strategy.step()
        else:
            self.strategy.skip_step()
        self.strategy.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole ones, in the first process."""
        with self.strategy.gathered_weights():
            if not self.accelerator.is_main_process:
                return {}
            named = {**self.net.state_dict(prefix="net."), **self.other.state_dict(prefix="other.")}
            return {name: tensor.detach().clone() for name, tensor in named.items()}


def difference(ours: dict[str, torch.Tensor], plain: PlainLoop) -> float:
    theirs = {**plain.net.state_dict(prefix="net."), **plain.other.state_dict(prefix="other.")}
    assert ours.keys() == theirs.keys()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items())


def state_difference(ours: dict, theirs: dict) -> float | str:
    """The largest difference of two `state_dict`s of optimizers, or what is not alike in kind."""
    groups = [[{**group, "fused": None} for group in state["param_groups"]] for state in (ours, theirs)]
    if groups[0] != groups[1]:  # but for the kernel, which sharded parameters have another of
        return f"groups {groups[0]} and {groups[1]}"
    largest = 0.0
    for index, entries in theirs["state"].items():
        if ours["state"].get(index, {}).keys() != entries.keys():
            return f"keys of {index}: {ours['state'].get(index, {}).keys()} and {entries.keys()}"
        for key, value in entries.items():
            own = ours["state"][index][key]
            if not isinstance(value, torch.Tensor):
                if own != value:
                    return f"{key}: {own} and {value}"
            elif type(own) is not torch.Tensor or own.shape != value.shape or own.dtype != value.dtype:
                return f"{key}: {type(own)} {own.shape} {own.dtype} and {value.shape} {value.dtype}"
            else:
                largest = max(largest, float((own - value).abs().max()))
    return largest


def share_of_state(strategy: ParallelStrategy, plain: torch.optim.Optimizer) -> float:
    """How much of the optimizer's state this process holds."""

    def count(optimizer: torch.optim.Optimizer) -> int:
        tensors = [value for entries in optimizer.state.values() for value in entries.values()]
        parts = [each.to_local() if isinstance(each, DTensor) else each for each in tensors if torch.is_tensor(each)]
        return sum(part.numel() for part in parts if part.dim() > 0)

    return count(strategy.optimizer) / count(plain)


def share_of_weights(shared: Shared) -> float:
    """How much of the weights this process holds between their uses."""
    params = [*shared.net.parameters(), *shared.other.parameters()]
    parts = [param.to_local() if isinstance(param, DTensor) else param for param in params]
    whole = nn.ModuleList(modules(shared.layout)).parameters()
    return sum(part.numel() for part in parts) / sum(param.numel() for param in whole)


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def told(value):
    """What the first process has, in both."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def follow(accelerator: Accelerator, layout: str, name: str) -> dict:
    """Trains both ways; then twice more from a state of the middle, which is read as a file would be.

    Of these the second is the plain loop's own, as a run of one process saves it, and as one of DeepSpeed's ZeRO did.
    """
    plain, shared, middle = PlainLoop(layout, name), Shared(accelerator, layout, name), 2
    batches = micro_batches()
    for step in batches[:middle]:
        plain.step(step)
        shared.step(step)
    state, weights = copy.deepcopy(shared.strategy.optimizer_state()), shared.weights()
    of_plain = copy.deepcopy(plain.optimizer.state_dict())
    state_gap = state_difference(state, of_plain) if accelerator.is_main_process else 0
    for step in batches[middle:]:
        plain.step(step)
        shared.step(step)
    resumed = []
    for saved in (state, of_plain):
        again = Shared(accelerator, layout, name, told(weights))
        again.strategy.load_optimizer_state(told(saved))
        for step in batches[middle:]:
            again.step(step)
        resumed.append(again.weights())
    last = shared.weights()
    return {
        "weights": difference(last, plain) if accelerator.is_main_process else 0,
        "norms": max(abs(a - b) for a, b in zip(plain.norms, shared.norms, strict=True)),
        "state": state_gap,
        "resumed": same_bits(last, resumed[0]),
        "resumed from one process": difference(resumed[1], plain) if accelerator.is_main_process else 0,
        "share of state": share_of_state(shared.strategy, plain.optimizer),
        "share of weights": share_of_weights(shared),
    }


def spoil(accelerator: Accelerator, layout: str, bad: float) -> dict:
    """The second of three steps has a loss of one process that is not finite."""
    plain, shared = PlainLoop(layout, "AdamW"), Shared(accelerator, layout, "AdamW")
    first, second, third = micro_batches()[:3]
    plain.step(first)
    plain.step(third)
    shared.step(first)
    before = shared.weights()
    shared.step(second, lambda loss: loss + bad)
    after = shared.weights()
    shared.step(third)
    last = shared.weights()
    are_finite = shared.strategy.are_weights_finite()
    break_one(shared.strategy, accelerator.process_index == 1 or layout == "whole")
    return {
        "norm": shared.norms[1],
        "kept": same_bits(before, after),
        "weights": difference(last, plain) if accelerator.is_main_process else 0,
        "finite": are_finite,
        "finite when broken": shared.strategy.are_weights_finite(),
    }


@torch.no_grad()
def break_one(strategy: ParallelStrategy, is_here: bool) -> None:
    """Makes one number of this process's weights infinite."""
    held = strategy.groups[0].params[-1]
    if is_here:
        (held.to_local() if isinstance(held, DTensor) else held).view(-1)[0] = math.inf


def scale(accelerator: Accelerator, layout: str) -> dict:
    """With the gradient scaler of fp16: an overflow at the second of four steps."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    plain, shared = PlainLoop(layout, "AdamW"), Shared(accelerator, layout, "AdamW")
    scales = []
    for index, step in enumerate(micro_batches()[:4]):
        if index != 1:
            plain.step(step)
        shared.step(step, overflows=index == 1)
        scales.append(accelerator.gather(torch.tensor([accelerator.scaler.get_scale()])).tolist())
    accelerator.scaler = None
    norms = [norm for index, norm in enumerate(shared.norms) if index != 1]
    last = shared.weights()
    return {
        "scales": scales,
        "norms": max(abs(a - b) for a, b in zip(plain.norms, norms, strict=True)),
        "weights": difference(last, plain) if accelerator.is_main_process else 0,
    }


def main(result: str) -> None:
    accelerator = make_accelerator("no", timeout_minutes=7)
    group = torch.distributed.distributed_c10d._get_default_group()
    found: dict = {"timeout": group._get_backend(torch.device("cpu")).options._timeout.total_seconds()}
    for layout in LAYOUTS:
        names = OPTIMIZERS if layout == "fsdp-blocks" else ("AdamW", "SGD")
        found[layout] = {name: follow(accelerator, layout, name) for name in names}
        found[layout] |= {f"loss + {bad}": spoil(accelerator, layout, bad) for bad in (math.nan, math.inf)}
        if layout.startswith("zero"):
            found[layout]["scaled"] = scale(accelerator, layout)
    if accelerator.is_main_process:
        Path(result).write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may still want the interpreter, to let a tensor go


if __name__ == "__main__":
    main(sys.argv[1])
