"""LoRA: trained low-rank updates of the Linear and convolution layers of U-Net and text encoder.

The `--network_module` plug-in `networks.lora`: `create_network` for training, `create_network_from_weights` for files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from library.cli.errors import plural
from networks.lora_files import load_adapter, save_adapter
from networks.lora_layer import LoRALayer
from networks.lora_options import LoRAOptions, parse_network_args
from networks.lora_targets import Target, all_layers, is_spatial, text_encoder_layers, unet_layers
from networks.lora_weights import check_weights, fit_weights, ranks_and_alphas

logger = logging.getLogger(__name__)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: nn.Module | None,
    text_encoder: nn.Module | Sequence[nn.Module],
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **network_args: str,
) -> LoRANetwork:
    """A new adapter without effect yet: `lora_up` is zero, `lora_down` is drawn from torch's global generator.

    `network_dim` None is 4; `network_alpha` None or 0 is `network_dim`. Raises UserError for invalid values and for
    unknown `network_args`, whose values may be the strings of `--network_args`.
    """
    options = parse_network_args(network_dim, network_alpha, neuron_dropout, network_args)
    convolutions = options.conv_dim is not None
    if not convolutions and network_args.get("conv_alpha"):
        logger.warning("conv_alpha of --network_args does nothing without conv_dim")
    return LoRANetwork(
        text_encoder_layers=[_new_layer(target, multiplier, options) for target in text_encoder_layers(text_encoder)],
        unet_layers=[_new_layer(target, multiplier, options) for target in unet_layers(unet, convolutions)],
        options=options,
    )


def _new_layer(target: Target, multiplier: float, options: LoRAOptions) -> LoRALayer:
    spatial = is_spatial(target.module)
    return LoRALayer(
        target.name,
        target.module,
        rank=options.conv_dim if spatial and options.conv_dim is not None else options.dim,
        alpha=options.conv_alpha if spatial else options.alpha,
        multiplier=multiplier,
        dropout=options.dropout,
    )


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
) -> tuple[LoRANetwork, dict[str, torch.Tensor]]:
    """The adapter of a file, or of `weights_sd`, with its weights loaded, and those weights.

    Ranks and alphas are the file's, layer by layer. Raises UserError if a layer in it is not in the model.
    """
    options = parse_network_args(None, None, neuron_dropout, network_args)
    source = str(file) if file is not None else "the adapter weights"
    if weights_sd is not None:
        weights = dict(weights_sd)
    else:
        assert file is not None, "a file or weights_sd"
        weights = load_adapter(file)
    found = ranks_and_alphas(weights, source)
    targets = [target for target in all_layers(text_encoder, unet) if target.name in found]
    layers = [
        LoRALayer(
            target.name,
            target.module,
            rank=found[target.name].rank,
            alpha=found[target.name].alpha,
            multiplier=multiplier,
            dropout=options.dropout,
        )
        for target in targets
    ]
    network = LoRANetwork(
        text_encoder_layers=[layer for layer in layers if layer.name.startswith("lora_te")],
        unet_layers=[layer for layer in layers if layer.name.startswith("lora_unet")],
        options=options,
    )
    network.load_checked(weights, source)
    if for_inference:
        network.requires_grad_(False).eval()
    return network, weights


@dataclass(frozen=True)
class LoadInfo:
    """What `load_weights` did."""

    file: str
    num_layers: int


class LoRANetwork(nn.Module):
    """The trainable layers of an adapter. Its state_dict is the adapter file, without the base model's weights."""

    def __init__(
        self, text_encoder_layers: Iterable[LoRALayer], unet_layers: Iterable[LoRALayer], options: LoRAOptions
    ):
        super().__init__()
        self.text_encoder_loras = list(text_encoder_layers)
        self.unet_loras = list(unet_layers)
        self._loraplus_ratios = {
            "textencoder": options.loraplus_text_encoder_lr_ratio,
            "unet": options.loraplus_unet_lr_ratio,
        }
        self._parts_without_lr: frozenset[str] = frozenset()
        self._applied = False
        for layer in self.layers():
            assert layer.name not in self._modules, f"two layers are named {layer.name}"
            self.add_module(layer.name, layer)

    def layers(self) -> Iterator[LoRALayer]:
        yield from self.text_encoder_loras
        yield from self.unet_loras

    def apply_to(
        self,
        text_encoder: nn.Module | Sequence[nn.Module],
        unet: nn.Module,
        apply_text_encoder: bool = True,
        apply_unet: bool = True,
    ) -> None:
        """Attaches the layers to the models that the network was made for; a part not applied is removed from it."""
        assert not self._applied, "the network is applied already"
        self._applied = True
        if not apply_text_encoder:
            self._drop(self.text_encoder_loras)
        if not apply_unet:
            self._drop(self.unet_loras)
        for layer in self.layers():
            layer.attach()
        logger.info("LoRA on %d text encoder and %d U-Net layers", len(self.text_encoder_loras), len(self.unet_loras))

    def _drop(self, layers: list[LoRALayer]) -> None:
        for layer in layers:
            delattr(self, layer.name)
        layers.clear()

    def merge_to(
        self,
        text_encoder: nn.Module | Sequence[nn.Module],
        unet: nn.Module,
        weights_sd: Mapping[str, torch.Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Adds the updates to the base weights, computed in float32 on `device`, each rounded to `dtype`.

        `weights_sd` is loaded first and its layers alone are merged; None merges all layers as they are.
        """
        assert not self._applied, "an applied network is not merged as well: it would count twice"
        chosen = None
        if weights_sd is not None:
            source = "the adapter weights"
            chosen = ranks_and_alphas(weights_sd, source)
            self.load_checked(weights_sd, source, partly=True)
        for layer in self.layers():
            if chosen is None or layer.name in chosen:
                layer.merge(dtype, device)

    def average_update_norm(self) -> torch.Tensor:
        """The mean of the norms of the layers' updates: how far the network has moved the model."""
        return torch.stack([layer.update_norm() for layer in self.layers()]).mean()

    @torch.no_grad()
    def apply_max_norm_regularization(
        self, max_norm: float, device: torch.device | str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scales down each layer whose update has a larger Frobenius norm than `max_norm`, `up` and `down` alike.

        Returns, without a wait for the device, the number of layers scaled, and the mean and the largest norm after it.
        """
        layers = list(self.layers())
        norms = torch.stack([layer.update_norm() for layer in layers])
        limited = norms.clamp(max=max_norm)
        factors = torch.where(norms > max_norm, limited / norms, 1.0).sqrt()
        for layer, factor in zip(layers, factors, strict=True):
            layer.lora_down.weight.mul_(factor)
            layer.lora_up.weight.mul_(factor)
        return (norms > max_norm).sum(), limited.mean(), limited.max()

    def set_multiplier(self, multiplier: float) -> None:
        for layer in self.layers():
            layer.multiplier = float(multiplier)

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, default_lr: float | None
    ) -> tuple[list[dict], list[str]]:
        """Parameter groups for the optimizer, and their names: "textencoder", "unet".

        With LoRA+ (Hayou et al. 2024, 2402.12354) each `lora_up` has its ratio times the rate, in a group of its own:
        "unet plus". A learning rate of None is `default_lr`. A part with the rate 0, or without any, is left out and
        requires no gradients.
        """
        rates = {"textencoder": text_encoder_lr, "unet": unet_lr}
        parts = {"textencoder": self.text_encoder_loras, "unet": self.unet_loras}
        groups, names = [], []
        for name, layers in parts.items():
            rate = default_lr if rates[name] is None else rates[name] or None
            if layers and rate is not None:
                for suffix, params, ratio in _groups_of(layers, self._loraplus_ratios[name]):
                    groups.append({"params": params, "lr": rate * ratio})
                    names.append(name + suffix)
        self._parts_without_lr = frozenset(parts) - frozenset(names)
        self._require_gradients()
        return groups, names

    def _require_gradients(self) -> None:
        for layer in self.text_encoder_loras:
            layer.requires_grad_("textencoder" not in self._parts_without_lr)
        for layer in self.unet_loras:
            layer.requires_grad_("unet" not in self._parts_without_lr)

    def prepare_grad_etc(self, text_encoder: nn.Module | Sequence[nn.Module], unet: nn.Module) -> None:
        """Makes the parameters that have a learning rate require gradients; the base model's are not changed."""
        self._require_gradients()

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: gradient checkpointing of the base model's blocks recomputes the layers with them."""

    def on_epoch_start(self, text_encoder: nn.Module | Sequence[nn.Module], unet: nn.Module) -> None:
        self.train()

    def on_step_start(self) -> None:
        """Nothing to do."""

    def get_trainable_params(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def load_weights(self, file: str | os.PathLike[str]) -> LoadInfo:
        """Starts from an adapter file; a warning names layers missing in it, and layers of it that are not used.

        Raises UserError if it has no layer of the network, or for other ranks or shapes than the network's.
        """
        weights, source = load_adapter(file), str(file)
        in_file, own = set(ranks_and_alphas(weights, source)), {layer.name for layer in self.layers()}
        if not in_file & own:
            check_weights(weights, self.state_dict(), source)
        fitting = {key: tensor for key, tensor in weights.items() if key.partition(".")[0] in own}
        self.load_checked(fitting, source, partly=True)
        if in_file != own:
            logger.warning("%s: %s", source, _difference(in_file, own))
        return LoadInfo(file=source, num_layers=len(in_file & own))

    def load_checked(self, weights: Mapping[str, torch.Tensor], source: str, partly: bool = False) -> None:
        """Loads weights after comparing names and shapes; `source` is for messages, `partly` allows missing ones.

        A missing alpha is the rank, as in files without alphas. The alpha of the weights replaces the network's.
        """
        own = self.state_dict()
        weights = fit_weights(weights, own)
        check_weights(weights, own, source, partly)
        changed = [name for name in weights if name.endswith(".alpha") and float(weights[name]) != float(own[name])]
        if changed:
            logger.warning("%s has another alpha than --network_alpha; %s is used", source, float(weights[changed[0]]))
        self.load_state_dict(weights, strict=not partly)

    def save_weights(
        self,
        file: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the adapter file atomically, with `metadata` and the `sshs_*` hashes; `metadata` is not changed."""
        save_adapter(file, self.state_dict(), dtype, metadata)


def _groups_of(layers: list[LoRALayer], ratio: float | None) -> Iterator[tuple[str, list[nn.Parameter], float]]:
    """Groups of the layers' parameters: suffix of the name, parameters, factor of the rate. `ratio`: that of LoRA+."""
    if ratio is None:
        yield "", [param for layer in layers for param in layer.parameters()], 1.0
    else:
        yield "", [param for layer in layers for param in layer.lora_down.parameters()], 1.0
        yield " plus", [param for layer in layers for param in layer.lora_up.parameters()], ratio


def _difference(in_file: set[str], own: set[str]) -> str:
    """The layers of a network that a file lacks, and the layers of the file that the network lacks."""
    parts = []
    if own - in_file:
        parts.append(f"it has no weights for {_counted(own - in_file)}, which start untrained")
    if in_file - own:
        parts.append(f"its weights for {_counted(in_file - own)} are not used: this network has no such layers")
    return "; ".join(parts)


def _counted(names: set[str]) -> str:
    """The number of layers of each part: "72 layers of the text encoder (lora_te_text_model_..., ...)"."""
    texts = []
    for part, start in (("text encoder", "lora_te"), ("U-Net", "lora_unet")):
        found = sorted(name for name in names if name.startswith(start))
        if found:
            texts.append(f"{plural(len(found), 'layer')} of the {part} ({found[0]}{', ...' if len(found) > 1 else ''})")
    return " and ".join(texts)
