"""Peak memory of a computation, from the tensors that it makes, real ones or fake ones without data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter(TorchDispatchMode):
    """Within it, `now` is the size in bytes of all storages that its operations have made and `hold` was given.

    What an operation needs while it runs (workspaces), and an allocator's waste, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Counts tensors that exist already, each storage once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, key)
        self.peak = max(self.peak, self.now)

    def _release(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


def weights_of(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """Parameters and buffers of modules, each once."""
    found = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return list(found.values())


def make_fake(modules: Iterable[nn.Module], mode: FakeTensorMode) -> dict[nn.Parameter, nn.Parameter]:
    """Replaces parameters and buffers by fake ones of the same shape; the modules are of no use afterwards.

    Returns which parameter has become which.
    """
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in {id(each): each for top in modules for each in top.modules()}.values():
        for name, param in list(module._parameters.items()):
            if param is not None:
                if param not in replaced:
                    fake = mode.from_tensor(param.data)
                    replaced[param] = nn.Parameter(fake, requires_grad=param.requires_grad)
                module._parameters[name] = replaced[param]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return replaced
