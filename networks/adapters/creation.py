"""Makes the adapter networks of `--network_module`: new ones, and those of files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from networks.adapters.adapter_layer import AdapterLayer
from networks.adapters.files import load_adapter
from networks.adapters.network import AdapterNetwork
from networks.adapters.options import AdapterOptions, parse_network_args, without_effect
from networks.adapters.selection import choose_layers, layer_rates
from networks.adapters.targets import (
    USUAL_BLOCKS,
    Target,
    TargetBlocks,
    all_layers,
    other_names,
    text_encoder_layers,
    unet_layers,
)
from networks.adapters.weights import parts_by_layer, with_names

logger = logging.getLogger(__name__)

NewNetwork = Callable[..., AdapterNetwork]
NetworkOfFile = Callable[..., tuple[AdapterNetwork, dict[str, torch.Tensor]]]


def network_functions(module: str, layer_class: type[AdapterLayer]) -> tuple[NewNetwork, NetworkOfFile]:
    """`create_network` and `create_network_from_weights` of the plug-in `module`, whose layers are `layer_class`.

    Its arguments are the row of `module` in `networks/adapters/options.py`.
    """

    def create_network(
        multiplier: float,
        network_dim: int | None,
        network_alpha: float | None,
        vae: nn.Module | None,
        text_encoder: nn.Module | Sequence[nn.Module],
        unet: nn.Module,
        neuron_dropout: float | None = None,
        adapter_blocks: TargetBlocks = USUAL_BLOCKS,
        **network_args: str,
    ) -> AdapterNetwork:
        """A new adapter without effect yet; what is random is drawn from torch's global generator.

        `network_dim` None is 4; `network_alpha` None or 0 is `network_dim`. `adapter_blocks`: whose layers are adapted.
        Raises UserError for invalid values and for unknown `network_args`, whose values may be the strings of
        `--network_args`.
        """
        options = parse_network_args(module, network_dim, network_alpha, neuron_dropout, network_args)
        for line in without_effect(module, neuron_dropout, network_args):
            logger.warning(line)
        text_targets = text_encoder_layers(text_encoder, adapter_blocks)
        unet_targets = unet_layers(unet, options.has_convolutions, adapter_blocks)
        return _new_network(layer_class, options, multiplier, [*text_targets, *unet_targets], other_names(unet))

    def create_network_from_weights(
        multiplier: float,
        file: str | os.PathLike[str] | None,
        vae: nn.Module | None,
        text_encoder: nn.Module | Sequence[nn.Module],
        unet: nn.Module,
        weights_sd: Mapping[str, torch.Tensor] | None = None,
        for_inference: bool = False,
        neuron_dropout: float | None = None,
        **network_args: str,
    ) -> tuple[AdapterNetwork, dict[str, torch.Tensor]]:
        """The adapter of a file, or of `weights_sd`, with its weights loaded, and those weights.

        Ranks and alphas are the file's, layer by layer. Raises UserError if a layer in it is not in the model.
        """
        options = parse_network_args(module, None, None, neuron_dropout, network_args)
        for line in without_effect(module, neuron_dropout, network_args, of_file=True):
            logger.warning(line)
        assert weights_sd is not None or file is not None, "a file or weights_sd"
        source = str(file) if file is not None else "the adapter weights"
        read = weights_sd if weights_sd is not None else load_adapter(source)
        weights = with_names(read, other_names(unet))
        network = _network_of(layer_class, options, multiplier, text_encoder, unet, weights, source)
        if for_inference:
            network.requires_grad_(False).eval()
        return network, weights

    return create_network, create_network_from_weights


def _new_network(
    layer_class: type[AdapterLayer],
    options: AdapterOptions,
    multiplier: float,
    targets: Sequence[Target],
    names_in_files: Mapping[str, str],
) -> AdapterNetwork:
    layers = [
        layer_class(
            choice.target.name,
            choice.target.module,
            rank=choice.rank,
            alpha=choice.alpha,
            multiplier=multiplier,
            dropout=options.dropout,
            **options.layer_args,
        )
        for choice in choose_layers(options, targets)
    ]
    return AdapterNetwork(layer_class, layers, options, layer_rates(options, targets), names_in_files)


def _network_of(
    layer_class: type[AdapterLayer],
    options: AdapterOptions,
    multiplier: float,
    text_encoder: nn.Module | Sequence[nn.Module],
    unet: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: str,
) -> AdapterNetwork:
    """The network with the layers that `weights` has, and with these weights."""
    found = parts_by_layer(weights, layer_class.FILE, source)
    targets = [target for target in all_layers(text_encoder, unet) if target.name in found]
    layers = []
    for target in targets:
        settings = {**options.layer_args, **layer_class.settings_of(found[target.name])}
        layer = layer_class(target.name, target.module, multiplier=multiplier, dropout=options.dropout, **settings)
        layers.append(layer)
    network = AdapterNetwork(layer_class, layers, options, layer_rates(options, targets), other_names(unet))
    network.load_checked(weights, source)
    return network
