"""Network modules of other packages (LyCORIS), and files of other kinds than what is trained.

What these modules are given, what they keep outside their `state_dict`, and what merges a file.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from library.cli.errors import UserError, first_line, listed, plural
from library.methods.options import NetworkOptions
from library.models.weights.safetensors_header import HeaderError, read_header

logger = logging.getLogger(__name__)

_LYCORIS_NETWORK = "LycorisNetworkKohya"
_LORA = "networks.lora"
_KINDS_BY_TENSOR = (
    ("lora_up", _LORA), ("hada_", "networks.loha"), ("lokr_", "networks.lokr"), ("oft_blocks", "networks.oft"),
)  # fmt: skip
_WITHOUT_DROPOUT = ("loha", "lokr")  # a line of the package for each layer says so


def is_foreign(network_module: ModuleType) -> bool:
    """Whether a network module is not one of this project."""
    return not network_module.__name__.startswith("networks.")


def merging_module(network_module: ModuleType, file: str) -> ModuleType:
    """The network module that merges a file of `--base_weights`: of this project that of the file's kind.

    For LyCORIS too, which merges at multiplier 1 whatever is given, and LoHa by the square of its scale. Modules of
    other packages merge their files themselves.
    """
    if is_foreign(network_module) and not hasattr(network_module, _LYCORIS_NETWORK):
        return network_module
    try:
        tensors = {key.partition(".")[2] for key in read_header(Path(file)).tensors}
    except (HeaderError, OSError):
        tensors = set()  # a pickle, or a file that its reader refuses
    default = _LORA if is_foreign(network_module) else network_module.__name__
    return importlib.import_module(
        next(
            (module for tensor, module in _KINDS_BY_TENSOR if any(name.startswith(tensor) for name in tensors)), default
        )
    )


@contextmanager
def as_user_errors(problem: str, hint: str) -> Iterator[None]:
    """Makes what these packages raise for arguments and files that they do not accept a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{problem}: {first_line(error)}", hint=hint) from error


def arguments_for(network_module: ModuleType, options: NetworkOptions) -> dict[str, Any]:
    """The keyword arguments of both `create_network` and `create_network_from_weights`."""
    given = options.keyword_arguments()
    if not hasattr(network_module, _LYCORIS_NETWORK):
        return {"neuron_dropout": options.network_dropout, **given}
    arguments: dict[str, Any] = {}
    if not given.get("preset", "").endswith(".toml"):
        arguments["warn_on_unmatched"] = False  # its own presets name blocks of many families
    if options.network_dropout and given.get("algo") in _WITHOUT_DROPOUT:
        logger.warning("--network_dropout does nothing: algo=%s has none, but rank_dropout", given["algo"])
    elif options.network_dropout:
        arguments["dropout"] = options.network_dropout
    return arguments | given


def check_checkpointing(network_module: ModuleType, options: NetworkOptions) -> None:
    """Raises UserError for a network that draws from Python's generator, which a recomputation does not set back."""
    if hasattr(network_module, _LYCORIS_NETWORK) and options.keyword_arguments().get("algo") == "dylora":
        raise UserError(
            f"--gradient_checkpointing: algo=dylora of {network_module.__name__} draws other ranks when it recomputes",
            hint="leave --gradient_checkpointing out, or train with --network_module networks.dylora",
        )


def unet_for(network_module: ModuleType, unet: nn.Module) -> Any:
    """What `network_module` is given as the U-Net to look for layers: for others than LyCORIS the U-Net itself."""
    network_class = getattr(network_module, _LYCORIS_NETWORK, None)
    return unet if network_class is None else NamedLayersOnce(unet, network_class)


class NamedLayersOnce:
    """A view of `model` without the blocks all of whose layers LyCORIS's preset names one by one.

    The preset "full", the default, has the class of the time embedding among its blocks and the embedding's two layers
    among its names; the package refuses layers that it meets twice. Names and order of the layers are unchanged.
    """

    def __init__(self, model: nn.Module, network_class: Any):
        self._model = model
        self._network_class = network_class

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """As the model's; the names are those of the preset that the package has applied when it asks."""
        named = set(self._network_class.UNET_TARGET_REPLACE_NAME)
        for path, module in self._model.named_modules(*args, **kwargs):
            layers = {f"{path}.{name}" for name, part in module.named_modules() if name and _is_layer(part)}
            if not layers or not layers <= named:
                yield path, module


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


def check_loaded(network: nn.Module, result: Any, file: str) -> None:
    """Says which weights of `file` were not loaded, where `load_weights` gives PyTorch's lists of keys.

    Raises UserError if none of the trained ones were.
    """
    if not isinstance(result, Mapping):
        return
    unexpected, missing = (list(result.get(name, ())) for name in ("unexpected keys", "missing keys"))
    if {name for name, _ in network.named_parameters()} <= set(missing):
        raise UserError(
            f"--network_weights {file}: the network loads none of its weights ({listed(unexpected, 3)})",
            hint="give the --network_module and --network_args that the file was made with",
        )
    if unexpected:
        logger.warning(
            "%s: %s not used: %s", file, plural(len(unexpected), "weight is", "weights are"), listed(unexpected, 3)
        )


def exact_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers as they are, those too of which the package's `state_dict` gives another form.

    LyCORIS multiplies factors that it keeps apart into the weights of its files, or adds base weights: not exactly
    what a run goes on with.
    """
    return {name: tensor.detach() for name, tensor in _tensors(network)}


@torch.no_grad()
def load_exact_state(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Raises RuntimeError, as `load_state_dict` does, for the state of another network."""
    own = dict(_tensors(network))
    if own.keys() != state.keys():
        raise RuntimeError(f"it differs in {listed(sorted(own.keys() ^ state.keys()), 3)}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise RuntimeError(f"{name} has the shape {tuple(state[name].shape)}, the network {tuple(tensor.shape)}")
        tensor.copy_(state[name])


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())
