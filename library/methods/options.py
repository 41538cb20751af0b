"""Options of what is trained: an adapter network, the whole model, or a new word."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.errors import UserError, UserErrors
from library.cli.options import NOT_YET, option
from library.methods.caption_templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from library.models.layouts.formats import FORMATS
from library.models.text.vocabulary import is_one_token
from library.training.optimization.key_value_args import pairs_in

_LATER_NETWORKS = ("networks.dylora", "networks.lora_fa", "networks.oft", "networks.loha", "networks.lokr")
_NETWORKS_OF_FAMILIES = {
    "networks.lora_flux": "FLUX",
    "networks.oft_flux": "FLUX",
    "networks.lora_sd3": "Stable Diffusion 3",
    "networks.lora_lumina": "Lumina",
    "networks.lora_hunyuan_image": "HunyuanImage",
    "networks.lora_anima": "Anima",
}


@dataclass(frozen=True)
class NetworkOptions:
    """The adapter network and its learning rates."""

    GROUP: ClassVar[str] = "LoRA network"

    network_module: str = option(
        "networks.lora", help="Python module of the network", metavar="MODULE", on_resume="same"
    )
    network_dim: int = option(4, help="rank: more can learn more, and makes a larger file", minimum=1, on_resume="same")
    network_alpha: float = option(
        1.0, help="the network's output is scaled by alpha / dim; 0 stands for the dim", minimum=0, on_resume="same"
    )
    network_dropout: float | None = option(help="share of the network's neurons left out in each step", minimum=0)
    network_args: tuple[str, ...] = option(
        (), help="arguments of the network module, each as key=value", on_resume="same"
    )
    network_weights: str | None = option(help="start from the weights in this file", metavar="FILE")
    unet_lr: float | None = option(
        help="learning rate of the U-Net's part (default: --learning_rate)", minimum=0, on_resume="kept"
    )
    text_encoder_lr: float | None = option(
        help="learning rate of the text encoder's part (default: --learning_rate)",
        minimum=0,
        takes_first=True,
        aliases=("learning_rate_te",),
        on_resume="kept",
    )
    network_train_unet_only: bool = option(False, help="train no part on the text encoder", on_resume="same")
    network_train_text_encoder_only: bool = option(False, help="train no part on the U-Net", on_resume="same")
    dim_from_weights: bool = option(
        False,
        help="take the ranks from --network_weights",
        refused=("is not implemented yet", "give --network_dim and --network_alpha as the file has them"),
    )
    scale_weight_norms: float | None = option(
        help="largest norm of each layer's update",
        above=0,
        refused=("is not implemented yet: the weights would grow larger than it asks for", "leave it out"),
    )
    base_weights: tuple[str, ...] = option(
        (),
        help="LoRA files that are merged into the model before training",
        metavar="FILE",
        refused=("is not implemented yet: the model would be trained without these LoRAs", "leave it out"),
    )
    base_weights_multiplier: tuple[float, ...] = option((), help="factors of --base_weights", inert=NOT_YET)
    save_model_as: str = option(
        "safetensors",
        help="format of the saved network; ckpt and pt are pickles without metadata",
        choices=("safetensors", "ckpt", "pt"),
        off=(False, "none"),
    )

    @property
    def alpha(self) -> float:
        """The alpha of a network of the rank `network_dim`."""
        return self.network_alpha or float(self.network_dim)

    def problems(self) -> Iterator[UserError]:
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            yield UserError(
                "--network_train_unet_only and --network_train_text_encoder_only leave nothing to train",
                hint="keep one of them, or neither to train both",
            )
        if self.network_dropout is not None and self.network_dropout >= 1:
            yield UserError(f"--network_dropout {self.network_dropout} leaves nothing", hint="give less than 1")
        for argument in self._network_pairs():
            if "=" not in argument:
                yield UserError(f"--network_args {argument} is not key=value", hint="write it as key=value")
        if self.network_weights is not None and not Path(self.network_weights).is_file():
            yield UserError(
                f"--network_weights {self.network_weights} does not exist", hint="give the path of a LoRA file"
            )
        yield from self._module_problems()

    def _module_problems(self) -> Iterator[UserError]:
        """A network of this project says what is wrong with its arguments before anything is loaded."""
        name, family = self.network_module, _NETWORKS_OF_FAMILIES.get(self.network_module)
        if self._module_exists():
            yield from self._argument_problems()
        elif name in _LATER_NETWORKS:
            yield UserError(f"--network_module {name} is not implemented yet", hint="train with networks.lora")
        elif family is not None:
            yield UserError(f"--network_module {name} is for {family}", hint="networks.lora is for this model")
        else:
            yield UserError(
                f"--network_module {name} cannot be found",
                hint="networks.lora comes with this project; others must be installed: lycoris.kohya by"
                " pip install lycoris-lora",
            )

    def _argument_problems(self) -> Iterator[UserError]:
        if any("=" not in argument for argument in self._network_pairs()) or not self._has_options_module():
            return
        module = importlib.import_module(f"{self.network_module}_options")  # beside the network's, without torch
        try:
            module.parse_network_args(self.network_dim, self.alpha, self.network_dropout, self.keyword_arguments())
        except UserErrors as errors:
            yield from errors.errors
        except UserError as error:
            yield error

    def _has_options_module(self) -> bool:
        is_own = self.network_module.startswith("networks.")
        return is_own and importlib.util.find_spec(f"{self.network_module}_options") is not None

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
        pairs = (argument.partition("=") for argument in self._network_pairs())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _network_pairs(self) -> list[str]:
        return [pair for argument in self.network_args for pair in pairs_in(argument)]


@dataclass(frozen=True)
class WholeModelOptions:
    """What `train_db.py` and `fine_tune.py` have in common; each adds what it does with the text encoder."""

    GROUP: ClassVar[str] = "Whole model"
    HOW_TO_FREEZE: ClassVar[str]  # how its user leaves the text encoder as it is

    save_model_as: str | None = option(
        help="format of saved models (default: that of the model trained on)", choices=tuple(FORMATS)
    )
    use_safetensors: bool = option(False, help="save .safetensors where the format would be one of pickles")
    learning_rate_te: float | None = option(
        help="learning rate of the text encoder (default: --learning_rate)", minimum=0, on_resume="kept"
    )

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder is made ready for training, however soon it stops."""
        return True

    @property
    def text_encoder_stops_at(self) -> int | None:
        """Steps after which the text encoder stays as it is; None where it learns to the end."""
        return None

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        if self.learning_rate_te is not None and not self.trains_text_encoder:
            yield (
                f"--learning_rate_te {self.learning_rate_te:g} does nothing: the text encoder is not trained"
                f" {self.HOW_TO_FREEZE}"
            )


@dataclass(frozen=True)
class DreamBoothOptions(WholeModelOptions):
    """Of train_db.py: the text encoder learns, for as long as its user wants."""

    HOW_TO_FREEZE: ClassVar[str] = "with --stop_text_encoder_training -1"

    stop_text_encoder_training: int | None = option(
        help="steps after which the text encoder stays as it is; 0 stops it from the start; -1 does not even make it"
        " ready for training, which needs less memory (default: it learns to the end)",
        minimum=-1,
        metavar="STEPS",
    )

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder is made ready for training, however soon it stops."""
        return self.stop_text_encoder_training != -1

    @property
    def text_encoder_stops_at(self) -> int | None:
        """Steps after which the text encoder stays as it is; None where it learns to the end."""
        return self.stop_text_encoder_training if self.trains_text_encoder else None


@dataclass(frozen=True)
class FineTuningOptions(WholeModelOptions):
    """Of fine_tune.py: the text encoder stays as it is, unless its user asks."""

    HOW_TO_FREEZE: ClassVar[str] = "without --train_text_encoder"

    train_text_encoder: bool = option(False, help="let the text encoder learn too", on_resume="same")

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder learns."""
        return self.train_text_encoder


_EMBEDDING_FILE_ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin", ".png")
_CAPTION_SYNTAX = "()[]{}|\\,"  # which weigh, choose and divide there


@dataclass(frozen=True)
class TextualInversionOptions:
    """The new word."""

    GROUP: ClassVar[str] = "Textual inversion"

    token_string: str | None = option(
        help="the new word, as captions and prompts hold it: one that the model does not know, such as <shs>",
        required=True,
        metavar="WORD",
        on_resume="same",
    )
    num_vectors_per_token: int | None = option(
        help="vectors that the word stands for, and tokens that it takes (default: as many as --weights holds, or 1)",
        minimum=1,
        maximum=75,
        on_resume="same",
    )
    init_word: str | None = option(
        help="a known word that comes close: the vectors begin as its tokens' (default: at random)", metavar="TEXT"
    )
    weights: str | None = option(
        help="go on from the word in this file: of this program, of Diffusers, or of a web UI (.pt, .png)",
        metavar="FILE",
    )
    use_object_template: bool = option(False, help='captions "a photo of a WORD" and the like, instead of their own')
    use_style_template: bool = option(
        False, help='captions "a painting in the style of WORD" and the like, instead of their own'
    )
    xti: bool = option(
        False,
        help="learn vectors for each cross-attention layer of the U-Net (P+, extended textual inversion)",
        on_resume="same",
    )
    save_model_as: str = option(
        "pt",
        help="format of the file; pt and ckpt are that of web UIs",
        choices=("safetensors", "ckpt", "pt"),
        off=(False, "none"),
    )

    def problems(self) -> Iterator[UserError]:
        if self.use_object_template and self.use_style_template:
            yield UserError(
                "--use_object_template and --use_style_template are different captions", hint="give one of them"
            )
        if self.init_word is not None and not self.init_word.strip():
            yield UserError("--init_word is empty", hint="give a word that comes close, or leave it out")
        yield from self._token_problems()
        yield from self._file_problems()

    def _token_problems(self) -> Iterator[UserError]:
        word = self.token_string
        if word is None:
            return
        if not word or word != "".join(word.split()):
            yield UserError(f"--token_string {word!r} is not one word", hint="give a word without spaces: <my-dog>")
        elif any(sign in word for sign in _CAPTION_SYNTAX):
            yield UserError(
                f"--token_string {word} holds signs that mean something else in captions: {_CAPTION_SYNTAX}",
                hint="give a word of letters, digits, <, >, - and _: <my-dog>",
            )
        elif is_one_token(word):
            yield UserError(
                f"--token_string {word} is in the model's vocabulary already",
                hint=f"give a word that it does not know, such as <{word.strip('<>') or 'my-dog'}>",
            )

    def _file_problems(self) -> Iterator[UserError]:
        if self.weights is None:
            return
        path = Path(self.weights)
        if not path.is_file():
            yield UserError(f"--weights {path} does not exist", hint="give the path of a file of a learned word")
        elif path.suffix.lower() not in _EMBEDDING_FILE_ENDINGS:
            yield UserError(
                f"--weights {path}: unknown kind of file {path.suffix or '(no ending)'!r}",
                hint=f"known endings: {', '.join(_EMBEDDING_FILE_ENDINGS)}",
            )

    @property
    def templates(self) -> tuple[str, ...]:
        """What stands in place of captions; nothing where they are used themselves."""
        if self.use_object_template:
            return OBJECT_TEMPLATES
        return STYLE_TEMPLATES if self.use_style_template else ()
