"""The training method of `train_network.py`: an adapter network (LoRA) is trained, the model is frozen."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.data.randomness import derive_seed
from library.methods.foreign_networks import (
    arguments_for,
    as_user_errors,
    check_checkpointing,
    check_loaded,
    exact_state,
    is_foreign,
    load_exact_state,
    merging_module,
    unet_for,
)
from library.methods.options import NetworkOptions
from library.models.family import ModelFamily
from library.models.weights.weight_writing import write_errors
from library.training.method import ParamGroup
from library.training.step_plan import Position

logger = logging.getLogger(__name__)


class AdapterTraining:
    """Trains a network of `--network_module`, through the plug-in interface that such modules share.

    Implements `library.training.method.TrainingMethod`.
    """

    trained_parts: frozenset[str] = frozenset()
    architecture_suffix = "/lora"

    def __init__(self, options: NetworkOptions):
        self._options = options
        self.ending = f".{options.save_model_as}"
        self._trains_unet = not options.network_train_text_encoder_only
        self.trains_text_encoders = options.trains_text_encoder
        self._network: Any = None
        self._groups: list[ParamGroup] = []
        self._text_encoder: Any = None
        self._unet: Any = None
        self._is_foreign = False
        self._norms: Any = None  # of the last limit: layers scaled, mean and largest norm

    def attach(self, family: ModelFamily, *, seed: int, default_learning_rate: float, checkpointing: bool) -> None:
        """Creates the network and attaches it to the model. Raises `UserError` for arguments it does not accept."""
        module = _import_module(self._options.network_module)
        if checkpointing:
            check_checkpointing(module, self._options)
        roots = family.adapter_roots()
        self._unet = roots.unet
        self._text_encoder = roots.text_encoders[0] if len(roots.text_encoders) == 1 else list(roots.text_encoders)
        for file, factor in self._options.merged_files:
            self._merge(merging_module(module, file), family, file, factor)
        torch.manual_seed(derive_seed("network init", seed))
        self._network = self._create(module, family)
        self._is_foreign = is_foreign(module)
        self._check_limit()
        self._network.apply_to(self._text_encoder, self._unet, self.trains_text_encoders, self._trains_unet)
        if self._options.network_weights is not None:
            self._load_weights(self._options.network_weights)
        if checkpointing:
            self._network.enable_gradient_checkpointing()
        self._network.to(torch.float32)
        self._network.prepare_grad_etc(self._text_encoder, self._unet)
        self._groups = self._make_groups(default_learning_rate)

    def _merge(self, module: ModuleType, family: ModelFamily, file: str, factor: float) -> None:
        """Adds the updates of a file of `--base_weights` to the frozen model's weights."""
        encoder, unet = self._text_encoder, self._unet
        logger.info("merging %s into the model, times %g", file, factor)
        network, weights = module.create_network_from_weights(
            factor, file, family.vae, encoder, unet, for_inference=True
        )
        network.merge_to(encoder, unet, weights, None, None)  # some networks have no defaults

    def _create(self, module: ModuleType, family: ModelFamily) -> Any:
        options = self._options
        arguments = arguments_for(module, options)
        model = family.vae, self._text_encoder, unet_for(module, self._unet)
        with as_user_errors(
            f"--network_module {module.__name__} does not accept these arguments",
            "check --network_args, --network_dim and --network_weights",
        ):
            if options.dim_from_weights:
                return module.create_network_from_weights(1.0, options.network_weights, *model, **arguments)[0]
            blocks = family.adapter_roots().blocks
            if blocks is not None and not is_foreign(module):  # other packages look for the blocks that they know
                arguments["adapter_blocks"] = blocks
            return module.create_network(1.0, options.network_dim, options.alpha, *model, **arguments)

    def _load_weights(self, file: str) -> None:
        with as_user_errors(
            f"--network_weights {file}: {self._options.network_module} cannot load it",
            "give the --network_module and --network_args that the file was made with",
        ):
            check_loaded(self._network, self._network.load_weights(file), file)

    def _check_limit(self) -> None:
        if self._options.scale_weight_norms and not hasattr(self._network, "apply_max_norm_regularization"):
            raise UserError(
                f"--scale_weight_norms: --network_module {self._options.network_module} cannot limit its norms",
                hint="leave it out, or train with networks.lora",
            )

    def _make_groups(self, default_learning_rate: float) -> list[ParamGroup]:
        found = self._groups_of_network(default_learning_rate)
        groups, names = found if isinstance(found, tuple) else (found, None)
        named = []
        for index, group in enumerate(groups):
            name = names[index] if names else group.get("name", f"group{index}")
            params = list(group["params"])
            named.append(ParamGroup(name, params, group.get("lr", default_learning_rate)))
        if not any(group.params for group in named):
            raise UserError(
                "nothing would be trained: every part of the network has learning rate 0 or no layers",
                hint="check --unet_lr, --text_encoder_lr and --network_args",
            )
        return named

    def _groups_of_network(self, default_learning_rate: float) -> Any:
        """What the network makes of the learning rates: groups, or groups and their names."""
        rates = self._text_encoder_rates()
        unet = self._options.unet_lr
        if len(set(rates)) == 1:
            return self._network.prepare_optimizer_params(rates[0], unet, default_learning_rate)
        if not hasattr(self._network, "prepare_optimizer_params_with_multiple_te_lrs"):
            raise UserError(
                f"--network_module {self._options.network_module} takes one learning rate for both text encoders",
                hint="give one --text_encoder_lr, or train with networks.lora",
            )
        return self._network.prepare_optimizer_params_with_multiple_te_lrs(rates, unet, default_learning_rate)

    def _text_encoder_rates(self) -> list[float | None]:
        num_encoders = len(self._text_encoder) if isinstance(self._text_encoder, list) else 1
        return self._options.text_encoder_rates(num_encoders)

    def param_groups(self) -> list[ParamGroup]:
        return self._groups

    def trainable_modules(self) -> list[nn.Module]:
        return [self._network]

    def on_epoch_start(self, epoch: int) -> None:
        self._network.on_epoch_start(self._text_encoder, self._unet)

    def on_step_start(self, step: int) -> None:
        if hasattr(self._network, "on_step_start"):
            self._network.on_step_start()

    def after_update(self) -> None:
        """Limits the norms of the layers' updates (`--scale_weight_norms`)."""
        limit = self._options.scale_weight_norms
        if limit is not None:
            device = next(self._network.parameters()).device
            self._norms = self._network.apply_max_norm_regularization(limit, device)

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str], position: Position) -> None:
        with atomic_path(path) as temporary, write_errors():
            self._network.save_weights(str(temporary), dtype, dict(metadata))  # some networks add entries to it

    def state_dict(self) -> dict[str, torch.Tensor]:
        return exact_state(self._network) if self._is_foreign else dict(self._network.state_dict())

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises `UserError` for the state of another network."""
        try:
            load_exact_state(self._network, state) if self._is_foreign else self._network.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise UserError(
                f"the state to resume from is that of another network: {reason}",
                hint="give the same --network_dim, --network_module and --network_args as the run that saved it",
            ) from None

    def curves(self) -> dict[str, float]:
        """`norm/avg_key_norm`: the mean of the norms of the updates to the layers, where the network tells it.

        With `--scale_weight_norms` also how many layers were scaled in the last step, and the largest norm after it.
        """
        if self._norms is not None:
            scaled, mean, largest = (float(value) for value in self._norms)
            return {"norm/avg_key_norm": mean, "max_norm/keys_scaled": scaled, "max_norm/max_key_norm": largest}
        if not hasattr(self._network, "average_update_norm"):
            return {}
        return {"norm/avg_key_norm": float(self._network.average_update_norm())}

    def metadata(self) -> dict[str, str]:
        options, rates = self._options, self._text_encoder_rates()
        rank, alpha = str(options.network_dim), str(options.alpha)
        if options.dim_from_weights and hasattr(self._network, "rank_and_alpha"):
            rank, alpha = self._network.rank_and_alpha()
        entries = {
            "ss_network_module": options.network_module,
            "ss_network_dim": rank,
            "ss_network_alpha": alpha,
            "ss_network_dropout": str(options.network_dropout),
            "ss_unet_lr": str(options.unet_lr),
            "ss_text_encoder_lr": str(rates[0] if len(set(rates)) == 1 else rates),
        }
        if options.network_args:
            entries["ss_network_args"] = json.dumps(options.keyword_arguments())
        return entries

    def usage_hint(self, path: Path) -> str:
        parts = {key.partition(".")[2] for key in self._network.state_dict()}
        in_diffusers = self.ending == ".safetensors" and parts <= {"lora_down.weight", "lora_up.weight", "alpha"}
        way = f", or in Diffusers: pipe.load_lora_weights({str(path)!r})" if in_diffusers else ""
        return f"load it in your image program as a LoRA{way}"


def _import_module(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--network_module {name} cannot be imported: {error}", hint="install what it needs") from None
    if not inspect.isfunction(getattr(module, "create_network", None)):
        raise UserError(
            f"--network_module {name} has no function create_network", hint="name a network module: networks.lora"
        )
    return module
