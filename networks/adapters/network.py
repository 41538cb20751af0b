"""Adapter network: the trained layers of U-Net and text encoder, their parameter groups and their file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from library.cli.errors import plural
from networks.adapters.adapter_layer import AdapterLayer
from networks.adapters.files import load_adapter, save_adapter
from networks.adapters.options import AdapterOptions
from networks.adapters.selection import LayerRate
from networks.adapters.targets import is_spatial
from networks.adapters.weights import check_weights, fit_weights, parts_by_layer, with_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadInfo:
    """What `load_weights` did."""

    file: str
    num_layers: int


@dataclass(frozen=True)
class _Part:
    """Layers that one learning rate is for."""

    name: str
    layers: Sequence[AdapterLayer]
    rate: float | None


class AdapterNetwork(nn.Module):
    """The trainable layers of an adapter. Its state_dict is the adapter file, without the base model's weights."""

    def __init__(
        self,
        layer_class: type[AdapterLayer],
        layers: Iterable[AdapterLayer],
        options: AdapterOptions,
        rates: Mapping[str, LayerRate],
        other_names: Mapping[str, str],
    ):
        """`other_names`: of layers in files -> their names in this network."""
        super().__init__()
        self._file_kind = layer_class.FILE
        layers = list(layers)
        self.text_encoder_loras = [layer for layer in layers if layer.name.startswith("lora_te")]
        self.unet_loras = [layer for layer in layers if layer.name.startswith("lora_unet")]
        self._rates = rates
        self._other_names = other_names
        self._loraplus_ratios = {
            "textencoder": options.loraplus_text_encoder_lr_ratio,
            "unet": options.loraplus_unet_lr_ratio,
        }
        self._frozen: frozenset[str] = frozenset()  # layers without a learning rate
        self._applied = False
        for layer in self.layers():
            assert layer.name not in self._modules, f"two layers are named {layer.name}"
            self.add_module(layer.name, layer)

    def layers(self) -> Iterator[AdapterLayer]:
        yield from self.text_encoder_loras
        yield from self.unet_loras

    def rank_and_alpha(self) -> tuple[str, str]:
        """Of the layers that are not 3x3 convolutions, if there are any, for metadata; "Dynamic" where they differ."""
        layers = list(self.layers())
        layers = [layer for layer in layers if not is_spatial(layer.base)] or layers
        ranks, alphas = {str(layer.rank) for layer in layers}, {str(float(layer.alpha)) for layer in layers}
        rank, alpha = (values.pop() if len(values) == 1 else "Dynamic" for values in (ranks, alphas))
        return rank, alpha

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
        num_text, num_unet = len(self.text_encoder_loras), len(self.unet_loras)
        logger.info("%s on %d text encoder and %d U-Net layers", self._file_kind.name, num_text, num_unet)

    def _drop(self, layers: list[AdapterLayer]) -> None:
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
            chosen = parts_by_layer(weights_sd, self._file_kind, source)
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
        """Scales down each layer whose update has a larger Frobenius norm than `max_norm`.

        Returns, without a wait for the device, the number of layers scaled, and the mean and the largest norm after it.
        """
        layers = list(self.layers())
        norms = torch.stack([layer.update_norm() for layer in layers])
        limited = norms.clamp(max=max_norm)
        factors = torch.where(norms > max_norm, limited / norms, 1.0)
        for layer, factor in zip(layers, factors, strict=True):
            layer.scale_update(factor)
        return (norms > max_norm).sum(), limited.mean(), limited.max()

    def set_multiplier(self, multiplier: float) -> None:
        for layer in self.layers():
            layer.multiplier = float(multiplier)

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, default_lr: float | None
    ) -> tuple[list[dict], list[str]]:
        """Parameter groups for the optimizer, and their names: "textencoder", "unet".

        Layers with a rate of their own have a group: "unet_block4" for a block of the U-Net, "unet_reg_lr_0" for a
        pattern. With LoRA+ (Hayou et al. 2024, 2402.12354) each `lora_up` has its ratio times the rate, in a group
        of its own: "unet plus". A learning rate of None is `default_lr`. A layer with the rate 0, or without any, is
        left out and requires no gradients.
        """
        text_encoder = _Part("textencoder", self.text_encoder_loras, text_encoder_lr)
        return self._groups_of_parts([text_encoder, _Part("unet", self.unet_loras, unet_lr)], default_lr)

    def prepare_optimizer_params_with_multiple_te_lrs(
        self, text_encoder_lrs: Sequence[float | None], unet_lr: float | None, default_lr: float | None
    ) -> tuple[list[dict], list[str]]:
        """As `prepare_optimizer_params`, with a rate for each text encoder: "textencoder 1", "textencoder 2"."""
        parts = [
            _Part(
                f"textencoder {number}",
                [layer for layer in self.text_encoder_loras if layer.name.startswith(f"lora_te{number}_")],
                rate,
            )
            for number, rate in enumerate(text_encoder_lrs, start=1)
        ]
        return self._groups_of_parts([*parts, _Part("unet", self.unet_loras, unet_lr)], default_lr)

    def _groups_of_parts(self, parts: Iterable[_Part], default_lr: float | None) -> tuple[list[dict], list[str]]:
        groups: list[dict] = []
        names: list[str] = []
        trained: set[str] = set()
        for part in parts:
            part_rate = default_lr if part.rate is None else part.rate or None
            for rate, members in self._by_rate(part.layers).items():
                lr = rate.of(part_rate)
                if lr is None:
                    continue
                trained.update(layer.name for layer in members)
                for suffix, params, ratio in _groups_of(members, self._loraplus_ratios[part.name.split()[0]]):
                    groups.append({"params": params, "lr": lr * ratio})
                    names.append(part.name + rate.group + suffix)
        self._frozen = frozenset(layer.name for layer in self.layers()) - trained
        self._require_gradients()
        return groups, names

    def _by_rate(self, layers: Iterable[AdapterLayer]) -> dict[LayerRate, list[AdapterLayer]]:
        grouped: dict[LayerRate, list[AdapterLayer]] = {}
        for layer in layers:
            grouped.setdefault(self._rates.get(layer.name, LayerRate()), []).append(layer)
        return grouped

    def _require_gradients(self) -> None:
        for layer in self.layers():
            layer.requires_grad_(False)
            for parameter in layer.trained_parameters():
                parameter.requires_grad_(layer.name not in self._frozen)

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
        weights, source = with_names(load_adapter(file), self._other_names), str(file)
        in_file, own = set(parts_by_layer(weights, self._file_kind, source)), {layer.name for layer in self.layers()}
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
        weights = fit_weights(weights, own, {layer.name: layer.rank for layer in self.layers()})
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


def _groups_of(layers: list[AdapterLayer], ratio: float | None) -> Iterator[tuple[str, list[nn.Parameter], float]]:
    """Groups of the layers' parameters: suffix of the name, parameters, factor of the rate. `ratio`: that of LoRA+."""
    trained = [param for layer in layers for param in layer.trained_parameters()]
    if ratio is None:
        yield "", trained, 1.0
    else:
        plus = [param for layer in layers for param in layer.plus_parameters()]
        in_plus = {id(param) for param in plus}
        yield "", [param for param in trained if id(param) not in in_plus], 1.0
        yield " plus", plus, ratio


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
