"""Full fine-tuning, the training method of `train_db.py` and `fine_tune.py`: the model's own weights are trained.

The two differ in their data and in whether the text encoder is trained, which their options say.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from library.cli.errors import UserError
from library.methods.options import WholeModelOptions
from library.models.family import ModelFamily
from library.models.layouts.formats import FORMATS
from library.training.method import ParamGroup
from library.training.step_plan import Position

logger = logging.getLogger(__name__)

_AS_FOLDER = "give --save_model_as diffusers or diffusers_safetensors"


class FullFineTuning:
    """Trains the U-Net, and the text encoder where the options say so.

    Implements `library.training.method.TrainingMethod`.
    """

    architecture_suffix = ""

    def __init__(self, options: WholeModelOptions, format: str):
        """`format`: of saved models, a key of `library.models.layouts.formats.FORMATS`."""
        self._options = options
        self._format = format
        self.trains_text_encoders = options.trains_text_encoder
        self.trained_parts = frozenset({"unet", "text_encoder"} if options.trains_text_encoder else {"unet"})
        self.ending = FORMATS[format].ending
        self._is_frozen = False
        self._family: ModelFamily
        self._groups: list[ParamGroup] = []
        self._modules: dict[str, nn.Module] = {}  # the trained ones, under their names in states

    def attach(self, family: ModelFamily, *, seed: int, default_learning_rate: float, checkpointing: bool) -> None:
        """Unfreezes the trained parts; `seed` is not used, and the family does the gradient checkpointing.

        Raises `UserError` for a model that cannot be saved in the format, too.
        """
        problem = family.save_problem(self._format)
        if problem is not None:
            raise UserError(
                f"the model cannot be saved with --save_model_as {self._format}: {problem.message}", _AS_FOLDER
            )
        self._family = family
        self._modules = {"unet": family.unet}
        num_encoders = len(family.text_encoders)
        rates = self._options.text_encoder_rates(num_encoders, default_learning_rate)
        trained: list[tuple[nn.Module, float]] = []
        if self.trains_text_encoders:
            for index, encoder in enumerate(family.text_encoders):
                if rates[index] or num_encoders == 1:  # one alone is trained, if at rate 0
                    self._modules[_encoder_name(index)] = encoder
                    trained.append((encoder, rates[index]))
        for module in self._modules.values():
            module.requires_grad_(True)
        for layer in family.layers_after_clip_skip():
            layer.requires_grad_(False)
        self._groups = self._unet_groups(default_learning_rate)
        if len({rate for _, rate in trained}) == 1:
            self._groups.append(_group("textencoder", [encoder for encoder, _ in trained], trained[0][1]))
        else:
            groups = (_group(f"textencoder {index + 1}", [each], rate) for index, (each, rate) in enumerate(trained))
            self._groups += groups

    def _unet_groups(self, default_learning_rate: float) -> list[ParamGroup]:
        """One group, or with `--block_lr` one for each block; blocks with rate 0 are frozen."""
        rates = self._options.block_lr
        if not rates:
            return [_group("unet", [self._family.unet], default_learning_rate)]
        blocks = self._family.unet_blocks()
        if len(blocks) != len(rates):
            raise UserError(
                f"--block_lr has {len(rates)} learning rates, this model has {len(blocks)} blocks", "leave it out"
            )
        for params, rate in zip(blocks, rates, strict=True):
            for param in params:
                param.requires_grad_(rate > 0)
        named = enumerate(zip(blocks, rates, strict=True))
        return [
            ParamGroup(f"unet_block{index}", params, rate) for index, (params, rate) in named if rate > 0 and params
        ]

    def param_groups(self) -> list[ParamGroup]:
        return self._groups

    def trainable_modules(self) -> list[nn.Module]:
        return list(self._modules.values())

    def on_epoch_start(self, epoch: int) -> None:
        pass

    def on_step_start(self, step: int) -> None:
        """Freezes the text encoder at the step of `--stop_text_encoder_training`.

        Without gradients no optimizer changes its weights, neither by momentum nor by weight decay.
        """
        stops_at = self._options.text_encoder_stops_at
        if stops_at is None or step < stops_at or self._is_frozen:
            return
        for encoder in self._family.text_encoders:
            encoder.requires_grad_(False)
            encoder.eval()
            for param in encoder.parameters():
                param.grad = None
        self._is_frozen = True
        logger.info("the text encoder is frozen from step %d on", step)

    def after_update(self) -> None:
        pass

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str], position: Position) -> None:
        """Writes U-Net, text encoder and VAE. Raises `OSError` when they cannot be written."""
        self._family.save(
            path,
            format=self._format,
            dtype=dtype,
            metadata=metadata,
            epoch=position.epoch,
            global_step=position.global_step,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, module in self._modules.items()
            for key, tensor in module.state_dict().items()
            if tensor.is_floating_point()  # older versions of transformers keep positions among the weights
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises `UserError` for the state of another model, or of a run that trains other parts."""
        own = self.state_dict()
        if own.keys() != state.keys():
            then, now = _parts(state), _parts(own)
            what = "of another model" if then == now else f"of a run that trains {then}, this one trains {now}"
            raise UserError(
                f"the state to resume from is {what}",
                hint="give the same model, and train the same parts of it, as the run that saved the state",
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise UserError(
                    f"the state to resume from is that of another model: {name} has the shape"
                    f" {tuple(state[name].shape)} there, {tuple(tensor.shape)} here",
                    hint="give the same --pretrained_model_name_or_path as the run that saved it",
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def curves(self) -> dict[str, float]:
        return {}

    def metadata(self) -> dict[str, str]:
        rates = {f"ss_{group.name}_lr": str(group.learning_rate) for group in self._groups}
        return {
            "ss_unet_lr": rates.get("ss_unet_lr", str(list(self._options.block_lr))),
            "ss_text_encoder_lr": rates.get("ss_textencoder_lr", "None"),
            "ss_train_text_encoder": str(self.trains_text_encoders),
            "ss_stop_text_encoder_training": str(self._options.text_encoder_stops_at),
        }

    def usage_hint(self, path: Path) -> str:
        call = "from_single_file" if self.ending else "from_pretrained"
        where = "choose it as the model in your image program, or load it" if self.ending else "load it"
        return f"{where} in Diffusers: {self._family.pipeline}.{call}({str(path)!r})"


def _group(name: str, modules: Sequence[nn.Module], learning_rate: float) -> ParamGroup:
    params = [param for module in modules for param in module.parameters() if param.requires_grad]
    return ParamGroup(name, params, learning_rate)


def _encoder_name(index: int) -> str:
    return "text_encoder" if index == 0 else f"text_encoder_{index + 1}"


def _parts(state: Mapping[str, torch.Tensor]) -> str:
    return " and ".join(sorted({name.split(".")[0] for name in state}))
