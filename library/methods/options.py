"""Options of the adapter network."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option


@dataclass(frozen=True)
class NetworkOptions:
    """The adapter network and its learning rates."""

    GROUP: ClassVar[str] = "LoRA network"

    network_module: str = option("networks.lora", help="Python module of the network", metavar="MODULE")
    network_dim: int = option(4, help="rank: more can learn more, and makes a larger file", minimum=1)
    network_alpha: float = option(1.0, help="the network's output is scaled by alpha / dim", above=0)
    network_dropout: float | None = option(help="share of the network's neurons left out in each step", minimum=0)
    network_args: tuple[str, ...] = option((), help="arguments of the network module, each as key=value")
    network_weights: str | None = option(help="start from the weights in this file", metavar="FILE")
    unet_lr: float | None = option(help="learning rate of the U-Net's part (default: --learning_rate)", minimum=0)
    text_encoder_lr: float | None = option(
        help="learning rate of the text encoder's part (default: --learning_rate)",
        minimum=0,
        aliases=("learning_rate_te",),
    )
    network_train_unet_only: bool = option(False, help="train no part on the text encoder")
    network_train_text_encoder_only: bool = option(False, help="train no part on the U-Net")

    def problems(self) -> Iterator[UserError]:
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            yield UserError(
                "--network_train_unet_only and --network_train_text_encoder_only leave nothing to train",
                hint="keep one of them, or neither to train both",
            )
        if self.network_dropout is not None and self.network_dropout >= 1:
            yield UserError(f"--network_dropout {self.network_dropout} leaves nothing", hint="give less than 1")
        for argument in self.network_args:
            if "=" not in argument:
                yield UserError(f"--network_args {argument} is not key=value", hint="write it as key=value")
        if self.network_weights is not None and not Path(self.network_weights).is_file():
            yield UserError(
                f"--network_weights {self.network_weights} does not exist", hint="give the path of a LoRA file"
            )
        if not self._module_exists():
            yield UserError(
                f"--network_module {self.network_module} cannot be found",
                hint="networks.lora comes with this project; others must be installed: lycoris.kohya by"
                " pip install lycoris-lora",
            )

    def _module_exists(self) -> bool:
        # only the top package is looked for: looking for lycoris.kohya would import lycoris, and torch with it
        top, *rest = self.network_module.split(".")
        try:
            found = top in sys.modules or importlib.util.find_spec(top) is not None
        except (ValueError, ImportError):
            return False
        if found and top == "networks" and rest:
            return importlib.util.find_spec(self.network_module) is not None
        return found

    def keyword_arguments(self) -> dict[str, str]:
        """`--network_args` as the network module takes them; all values are texts."""
        return dict(argument.split("=", 1) for argument in self.network_args)
