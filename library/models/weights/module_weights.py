"""Fills a module with weights, checking every key and shape; errors name the first keys in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn

from library.cli.errors import UserError, listed, plural
from library.models.weights.lazy_tensors import leave_unread

ModuleT = TypeVar("ModuleT", bound=nn.Module)

FLOAT32: Mapping[str, torch.dtype] = MappingProxyType({})  # data types of parts: those not named are float32
_NAMED_KEYS = 3


def build_empty(build: Callable[[], ModuleT]) -> ModuleT:
    """Builds a module on the device "meta", without memory; `fill_module` gives it its weights."""
    with torch.device("meta"):
        return build()


def fill_module(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, *, source: str, part: str
) -> None:
    """Gives an empty module its weights, as copies in `dtype`; afterwards it is in eval mode and frozen.

    Where new tensors come to the device "meta", it is checked and stays empty: its state_dict then holds tensors that
    are read when they are used. `source` and `part` ("U-Net") are for messages. Raises `UserError` for missing and
    surplus keys, and for tensors of another shape or type.
    """
    expected = module.state_dict()
    lacking = [name for name in expected if name not in tensors]
    if lacking:
        raise lacking_keys_error(source, part, lacking, len(expected))
    surplus = [name for name in tensors if name not in expected]
    if surplus:
        raise surplus_keys_error(source, part, surplus)
    state = {}
    for name, empty in expected.items():
        state[name] = _copy(tensors[name], empty.shape, dtype, f"{source}: {part}: {name}")
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    if torch.get_default_device().type == "meta":
        leave_unread(module, tensors)


class Fingerprints:
    """Digests of modules' weights in their present precision, 16 hexadecimal digits; each is computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, torch.dtype], str] = {}

    def of(self, module: nn.Module, dtype: torch.dtype) -> str:
        """The digest of a module that is in `dtype` now, and whose weights do not change otherwise."""
        key = id(module), dtype
        if key not in self._known:
            self._known[key] = _fingerprint(module)
        return self._known[key]


def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def lacking_keys_error(source: str, part: str, lacking: Sequence[str], num_expected: int | None = None) -> UserError:
    """The error for a file that lacks keys, of `num_expected` where that number is known."""
    if num_expected is None:
        message = f"{source} lacks the {part}, or parts of it: {listed(lacking, _NAMED_KEYS)}"
    else:
        message = (
            f"{source} lacks {len(lacking)} of the {num_expected} keys of the {part}: {listed(lacking, _NAMED_KEYS)}"
        )
    return UserError(
        message,
        "the file is incomplete, or not a model of a known family",
    )


def surplus_keys_error(source: str, part: str, surplus: Sequence[str]) -> UserError:
    """The error for a file that holds more of a part than models of its family have."""
    return UserError(
        f"{source} holds {plural(len(surplus), 'key')} that the {part} does not have: {listed(surplus, _NAMED_KEYS)}",
        "the file is damaged, or a variant that is not of a known family",
    )


def _copy(tensor: torch.Tensor, shape: Iterable[int], dtype: torch.dtype, name: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise UserError(f"{name} is {tensor.dtype}, not floating-point", "use a model that is not quantised")
    if tuple(tensor.shape) != tuple(shape):
        raise UserError(
            f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(shape)}",
            "the file is damaged, or its configuration is that of another model",
        )
    # always a copy: the tensor may be a memory-mapped view of a file that is replaced later
    return torch.empty(tuple(shape), dtype=dtype).copy_(tensor)
