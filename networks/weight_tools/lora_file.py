"""A LoRA file for the tools: read layer by layer, and written with the metadata of what it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from library.cli.errors import UserError
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.modelspec import kept_entries
from networks.adapters.files import save_adapter
from networks.adapters.formats.peft import METADATA_KEY as PEFT_ENTRY
from networks.adapters.formats.peft import own_form
from networks.adapters.weights import ALPHA, DOWN, UP, RankAndAlpha, ranks_and_alphas
from networks.weight_tools.adapter_kinds import refuse_other_kinds

VARYING = "Dynamic"  # what `ss_network_dim` and `ss_network_alpha` say where layers differ
_RANK_ARGS = ("conv_dim", "conv_alpha", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")


@dataclass(frozen=True)
class LayerWeights:
    """The low-rank update of one layer, alpha / rank * up @ down.

    `down` (rank, in) or (rank, in, kh, kw); `up` (out, rank), or (out, rank, 1, 1) of a convolution.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def is_spatial(self) -> bool:
        """Whether it is of a convolution with a kernel larger than 1x1."""
        return self.down.dim() == 4 and tuple(self.down.shape[2:]) != (1, 1)


def shaped(like: LayerWeights, down: torch.Tensor, up: torch.Tensor, alpha: float) -> LayerWeights:
    """Factors (rank, in) and (out, rank) in the shapes of a layer's, on the CPU."""
    rank = len(down)
    return LayerWeights(
        down.cpu().reshape(rank, *like.down.shape[1:]), up.cpu().reshape(len(like.up), rank, *like.up.shape[2:]), alpha
    )


@dataclass(frozen=True)
class LoRAFile:
    """An opened LoRA file; `ranks`: rank and alpha by layer."""

    path: Path
    ranks: Mapping[str, RankAndAlpha]
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]

    def layer(self, name: str) -> LayerWeights:
        """The weights of one layer, which are read now; a missing alpha is the rank."""
        rank, alpha = self.ranks[name].rank, self.ranks[name].alpha
        down, up = self.tensors[f"{name}.{DOWN}"], self.tensors[f"{name}.{UP}"]
        if up.dim() < 2 or up.shape[1] != rank:
            raise UserError(
                f"{self.path}: {name} has lora_down of rank {rank} and lora_up of shape {tuple(up.shape)}",
                "the file is damaged: copy or download it again",
            )
        return LayerWeights(down, up, float(rank) if alpha is None else alpha)

    def finite_layer(self, name: str) -> LayerWeights:
        """The same; raises `UserError` where it has NaN or infinite values."""
        layer = self.layer(name)
        if not all(bool(torch.isfinite(tensor.float()).all()) for tensor in (layer.down, layer.up)):
            raise UserError(
                f"{self.path}: {name} has NaN or infinite values",
                "take an earlier save; check_lora_weights.py names all",
            )
        return layer

    def update_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a layer's update: (out, in), or (out, in, kh, kw) of a convolution larger than 1x1."""
        down, up = self.tensors[f"{name}.{DOWN}"].shape, self.tensors[f"{name}.{UP}"].shape
        return up[0], down[1], *(down[2:] if tuple(down[2:]) != (1, 1) else ())

    def layers(self) -> Iterator[tuple[str, LayerWeights]]:
        """Name and weights of each layer, one in memory at a time."""
        for name in self.ranks:
            yield name, self.layer(name)

    @property
    def dtype(self) -> torch.dtype:
        """The data type that the weights are stored in."""
        return self.tensors[f"{next(iter(self.ranks))}.{DOWN}"].dtype


def open_lora(path: str) -> LoRAFile:
    """Opens a LoRA file, of PEFT or Diffusers too. Raises `UserError` for one that cannot be read and for others."""
    file = open_weights(Path(path))
    tensors = own_form(file.tensors, file.metadata, file.path)
    refuse_other_kinds(tensors, path)
    return LoRAFile(file.path, ranks_and_alphas(tensors, path), tensors, file.metadata)


def save_lora(path: str, layers: Mapping[str, LayerWeights], dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Writes a LoRA file atomically in our form, with `metadata`, to which ranks, alphas and hashes are added."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha)
        tensors[f"{name}.{DOWN}"] = layer.down
        tensors[f"{name}.{UP}"] = layer.up
    kept = {key: value for key, value in kept_entries(metadata).items() if key != PEFT_ENTRY}
    entries = {**kept, **_network_entries(layers.values(), metadata)}
    try:
        save_adapter(path, tensors, dtype, entries)
    except OSError as error:
        raise UserError(
            f"--save_to {path} cannot be written: {error.strerror or error}", "check the path and the space on the disk"
        ) from error


def _network_entries(layers: Iterable[LayerWeights], metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries about ranks and alphas, those of 3x3 convolutions as `--network_args` have them."""
    by_kind: dict[bool, list[LayerWeights]] = {False: [], True: []}
    for layer in layers:
        by_kind[layer.is_spatial].append(layer)
    args = {key: value for key, value in network_args(metadata).items() if key not in _RANK_ARGS}
    if by_kind[True]:
        args |= {
            "conv_dim": _same([str(layer.rank) for layer in by_kind[True]]),
            "conv_alpha": _same([str(layer.alpha) for layer in by_kind[True]]),
        }
    linear = by_kind[False] or by_kind[True]
    return {
        "ss_network_module": metadata.get("ss_network_module", "networks.lora"),
        "ss_network_dim": _same([str(layer.rank) for layer in linear]),
        "ss_network_alpha": _same([str(layer.alpha) for layer in linear]),
        **({"ss_network_args": json.dumps(args)} if args or "ss_network_args" in metadata else {}),
    }


def _same(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else VARYING


def network_args(metadata: Mapping[str, str]) -> dict[str, str]:
    """The `--network_args` of the training, where the metadata states them."""
    try:
        args = json.loads(metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}
