"""A device that computes on the CPU, knows which tensors are on it, and records what is read from it.

Its tensors say that they are on "meta", the one type of device that PyTorch knows on every machine and that has no
kernels here. As on a GPU, an operation on tensors of both kinds fails, and a value comes to the host by a copy alone:
where the host would have to wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_MATH_ATTENTION = 0  # which kernel attention chooses: the one that is made of other operations


class DeviceTensor(torch.Tensor):
    """A tensor on the device; `held` is its value."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        tensor.held = held
        return tensor

    # so that modules swap their parameters for these
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["held"])

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {}, [])


class _Device(TorchDispatchMode):
    def __init__(self, reads: list[str]):
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {}, self._reads)


class _DeviceGenerator(torch.Generator):
    device = DEVICE

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        is_ours = torch.device(device) == DEVICE
        return super().__new__(cls if is_ours else torch.Generator, "cpu")


# what needs a value, or a size that depends on values
_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")


def _compute(function: Any, args: Any, kwargs: dict[str, Any], reads: list[str]) -> Any:
    name = function.overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return _MATH_ATTENTION
    inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    from_device = any(isinstance(each, DeviceTensor) for each in inputs)
    target = kwargs.get("device")
    if name == "copy_":
        to_device = isinstance(args[0], DeviceTensor)
    else:
        to_device = from_device if target is None else torch.device(target) == DEVICE
        if from_device and name != "_to_copy":
            assert all(isinstance(each, DeviceTensor) or not each.dim() for each in inputs), f"{name}: of two devices"
    if from_device and (not to_device or name in _READS):
        reads.append(name)
    on_cpu = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    result = function(*tree_map(_held, args), **tree_map(_held, on_cpu))
    if not to_device:
        return args[0] if name == "copy_" else result
    placed = tree_map(lambda each: DeviceTensor(each) if isinstance(each, torch.Tensor) else each, result)
    return return_and_correct_aliasing(function, args, kwargs, placed) if from_device else placed


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def _kind(kind: str) -> str:
    """The type of device whose autocast is meant: "meta" has none."""
    return "cpu" if kind == DEVICE.type else kind


@contextmanager
def device_reads(monkeypatch: Any) -> Iterator[list[str]]:
    """Inside the context `DEVICE` is a device; gives the list of the reads so far."""
    reads: list[str] = []
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(torch, "Generator", _DeviceGenerator)
    monkeypatch.setattr(torch, "autocast", lambda kind, **kwargs: autocast(_kind(kind), **kwargs))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: is_enabled(_kind(kind)))
    with _Device(reads):
        yield reads
