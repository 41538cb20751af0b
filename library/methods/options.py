"""Options of the training methods: an adapter network (LoRA), full fine-tuning, textual inversion."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from library.cli.errors import UserError, UserErrors
from library.cli.options import option
from library.methods.caption_templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from library.models.layouts.formats import FORMATS
from library.models.text.vocabulary import is_one_token
from library.training.optimization.key_value_args import pairs_in

_NETWORKS_OF_FAMILIES = {
    "networks.lora_flux": "FLUX",
    "networks.oft_flux": "FLUX",
    "networks.lora_sd3": "Stable Diffusion 3",
    "networks.lora_lumina": "Lumina",
    "networks.lora_hunyuan_image": "HunyuanImage",
    "networks.lora_anima": "Anima",
}


def _rates(own: Mapping[str, float | None], default: float) -> dict[str, float]:
    """Rates by option; those of parts without their own are the default, under its name."""
    return {
        name if rate is not None else "learning_rate": default if rate is None else rate for name, rate in own.items()
    }


@dataclass(frozen=True)
class NetworkOptions:
    """The adapter network, its rank and alpha, and its learning rates."""

    GROUP: ClassVar[str] = "LoRA network"
    HOW_TO_FREEZE: ClassVar[str] = "with --network_train_unet_only"

    network_module: str = option(
        "networks.lora", help="Python module of the network", metavar="MODULE", on_resume="same"
    )
    network_dim: int = option(
        4,
        help="rank (dimension): higher ranks train more parameters and make larger files",
        minimum=1,
        on_resume="same",
    )
    network_alpha: float = option(
        1.0, help="the network's output is scaled by alpha / rank; 0 stands for the rank", minimum=0, on_resume="same"
    )
    network_dropout: float | None = option(
        help="dropout: probability of dropping each of the network's neurons in a step", minimum=0
    )
    network_args: tuple[str, ...] = option(
        (), help="arguments of the network module, each as key=value", on_resume="same"
    )
    network_weights: str | None = option(help="start from the weights in this LoRA file", metavar="FILE")
    unet_lr: float | None = option(
        help="learning rate of the U-Net's LoRA layers (default: --learning_rate)", minimum=0, on_resume="kept"
    )
    text_encoder_lr: tuple[float, ...] = option(
        (),
        help="learning rate of the text encoder's LoRA layers, or one for each of two encoders (default:"
        " --learning_rate)",
        minimum=0,
        aliases=("learning_rate_te",),
        on_resume="kept",
    )
    learning_rate_te1: float | None = option(
        help="learning rate of the first of two text encoders (default: --text_encoder_lr)", minimum=0, on_resume="kept"
    )
    learning_rate_te2: float | None = option(
        help="learning rate of the second of two text encoders (default: --text_encoder_lr)",
        minimum=0,
        on_resume="kept",
    )
    network_train_unet_only: bool = option(False, help="train the U-Net's LoRA only", on_resume="same")
    network_train_text_encoder_only: bool = option(False, help="train the text encoder's LoRA only", on_resume="same")
    dim_from_weights: bool = option(
        False,
        help="take the layers, their ranks and their alphas from --network_weights",
        on_resume="same",
    )
    scale_weight_norms: float | None = option(
        help="max-norm regularisation: after each step a layer whose update has a larger norm is scaled down to it",
        above=0,
    )
    base_weights: tuple[str, ...] = option(
        (),
        help="LoRA files that are merged into the model before training",
        metavar="FILE",
    )
    base_weights_multiplier: tuple[float, ...] = option(
        (), help="the factor of each of --base_weights; 1 for files without one"
    )
    save_model_as: str = option(
        "safetensors",
        help="format of the saved network; ckpt and pt are pickles without metadata",
        choices=("safetensors", "ckpt", "pt"),
        off=(False, "none"),
    )

    @property
    def trains_text_encoder(self) -> bool:
        return not self.network_train_unet_only

    def learning_rates(self, default: float) -> dict[str, float]:
        """The rate of each part that is trained, by the option that sets it."""
        own = {}
        if not self.network_train_text_encoder_only:
            own["unet_lr"] = self.unet_lr
        if not self.network_train_unet_only:
            own["text_encoder_lr"] = self.text_encoder_rates(1)[0]
        return _rates(own, default)

    def text_encoder_rates(self, num_encoders: int) -> list[float | None]:
        """The rate of each text encoder; None for `--learning_rate`."""
        given = [*self.text_encoder_lr[:num_encoders], *self.text_encoder_lr[-1:] * num_encoders, None, None]
        own = [self.learning_rate_te1, self.learning_rate_te2] if num_encoders > 1 else [None]
        return [rate if rate is not None else both for rate, both in zip(own, given, strict=False)]

    @property
    def alpha(self) -> float:
        """The alpha of a network of the rank `network_dim`."""
        return self.network_alpha or float(self.network_dim)

    @property
    def merged_files(self) -> list[tuple[str, float]]:
        """`--base_weights`, each with its factor."""
        factors = (*self.base_weights_multiplier, *[1.0] * len(self.base_weights))
        return list(zip(self.base_weights, factors, strict=False))

    def check(self) -> Iterator[UserError | str]:
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            yield UserError(
                "--network_train_unet_only and --network_train_text_encoder_only leave nothing to train",
                hint="keep one of them, or neither to train both",
            )
        if self.network_dropout is not None and self.network_dropout >= 1:
            yield UserError(f"--network_dropout {self.network_dropout} drops every neuron", hint="give less than 1")
        for argument in self._network_pairs():
            if "=" not in argument:
                yield UserError(f"--network_args {argument} is not key=value", hint="write it as key=value")
        yield from self._file_problems()
        yield from self._module_problems()

    def _file_problems(self) -> Iterator[UserError | str]:
        if self.network_weights is None and self.dim_from_weights:
            yield UserError("--dim_from_weights without --network_weights", hint="name the LoRA file to start from")
        for flag, file in (
            ("--network_weights", self.network_weights),
            *(("--base_weights", file) for file in self.base_weights),
        ):
            if file is not None and Path(file).is_dir():
                yield UserError(f"{flag} {file} is a folder", hint="give the path of the LoRA file in it")
            elif file is not None and not Path(file).is_file():
                yield UserError(f"{flag} {file} does not exist", hint="give the path of a LoRA file")
        num_files, num_factors = len(self.base_weights), len(self.base_weights_multiplier)
        if num_factors > num_files:
            yield f"--base_weights_multiplier has {num_factors} values for {num_files} files: the others do nothing"

    def _module_problems(self) -> Iterator[UserError]:
        """Problems of `--network_module` and, for a network of this project, of its arguments; loads no torch."""
        name, family = self.network_module, _NETWORKS_OF_FAMILIES.get(self.network_module)
        if self._module_exists():
            yield from self._argument_problems()
        elif family is not None:
            yield UserError(f"--network_module {name} is for {family}", hint="networks.lora is for this model")
        else:
            yield UserError(
                f"--network_module {name} cannot be found",
                hint="networks.lora comes with this project; others must be installed: lycoris.kohya by"
                " pip install lycoris-lora",
            )

    def _argument_problems(self) -> Iterator[UserError]:
        if any("=" not in argument for argument in self._network_pairs()):
            return
        if not self.network_module.startswith("networks."):
            return  # what other people's modules take is not known before they are imported
        module = importlib.import_module("networks.adapters.options")  # without torch
        if self.network_module not in module.NETWORK_ARGS:
            return
        arguments = self.network_dim, self.alpha, self.network_dropout, self.keyword_arguments()
        try:
            module.parse_network_args(self.network_module, *arguments)
        except UserErrors as errors:
            yield from errors.errors
        except UserError as error:
            yield error

    def _module_exists(self) -> bool:
        # only the top package is searched for: finding lycoris.kohya would import lycoris, and torch with it
        top, *rest = self.network_module.split(".")
        try:
            found = top in sys.modules or importlib.util.find_spec(top) is not None
        except (ValueError, ImportError):
            return False
        if found and top == "networks" and rest:
            return importlib.util.find_spec(self.network_module) is not None
        return found

    def keyword_arguments(self) -> dict[str, str]:
        """`--network_args` as keyword arguments of the network module; all values are strings."""
        pairs = (argument.partition("=") for argument in self._network_pairs())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _network_pairs(self) -> list[str]:
        return [pair for argument in self.network_args for pair in pairs_in(argument)]


def parse_block_rates(value: Any) -> tuple[float, ...]:
    """The rates of `--block_lr`, from a text with commas or a list. Raises `ValueError` with what was expected."""
    items = value if isinstance(value, (list, tuple)) else [value]
    numbers = [number for item in items for number in str(item).replace(",", " ").split()]
    try:
        rates = tuple(float(number) for number in numbers)
    except ValueError:
        rates = ()
    if not rates or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError("learning rates, separated by commas")
    return rates


@dataclass(frozen=True)
class WholeModelOptions:
    """Full fine-tuning: options of both `train_db.py` and `fine_tune.py`; each adds those of the text encoder."""

    GROUP: ClassVar[str] = "Whole model"
    HOW_TO_FREEZE: ClassVar[str]  # the flag that freezes the text encoder, for messages

    save_model_as: str | None = option(
        help="format of saved models (default: that of the base model)", choices=tuple(FORMATS)
    )
    use_safetensors: bool = option(False, help="save .safetensors instead of pickles (.ckpt, .bin)")
    learning_rate_te: float | None = option(
        help="learning rate of the text encoder (default: --learning_rate)", minimum=0, on_resume="kept"
    )
    learning_rate_te1: float | None = option(
        help="learning rate of the first of two text encoders; 0 freezes it (default: --learning_rate_te)",
        minimum=0,
        on_resume="kept",
    )
    learning_rate_te2: float | None = option(
        help="learning rate of the second of two text encoders; 0 freezes it (default: --learning_rate_te)",
        minimum=0,
        on_resume="kept",
    )
    block_lr: tuple[float, ...] = option(
        (),
        help="learning rates of the 23 blocks of a Stable Diffusion XL U-Net: embeddings, 9 down, 3 middle, 9 up,"
        " output (default: --learning_rate); 0 freezes a block",
        parse=parse_block_rates,
        metavar="RATES",
        on_resume="kept",
    )

    def learning_rates(self, default: float) -> dict[str, float]:
        """The rate of each part that is trained, by the option that sets it."""
        own = {"learning_rate_te": self.learning_rate_te} if self.trains_text_encoder else {}
        return {"learning_rate": default, **_rates(own, default)}

    def text_encoder_rates(self, num_encoders: int, default: float) -> list[float]:
        """The rate of each text encoder."""
        both = default if self.learning_rate_te is None else self.learning_rate_te
        own = [self.learning_rate_te1, self.learning_rate_te2] if num_encoders > 1 else [None]
        return [both if rate is None else rate for rate in own]

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder has gradients at the start, however soon it is frozen."""
        return True

    @property
    def text_encoder_stops_at(self) -> int | None:
        """Steps after which the text encoder is frozen; None where it is trained to the end."""
        return None

    def check(self) -> Iterator[str]:
        """One line for each option that has no effect together with the others."""
        if self.learning_rate_te is not None and not self.trains_text_encoder:
            yield (
                f"--learning_rate_te {self.learning_rate_te:g} does nothing: the text encoder is not trained"
                f" {self.HOW_TO_FREEZE}"
            )


@dataclass(frozen=True)
class DreamBoothOptions(WholeModelOptions):
    """Of train_db.py: the text encoder is trained, unless --stop_text_encoder_training freezes it."""

    HOW_TO_FREEZE: ClassVar[str] = "with --stop_text_encoder_training -1"

    stop_text_encoder_training: int | None = option(
        help="freeze the text encoder after this many steps; 0: from the start; -1: never make it trainable, which"
        " needs less memory (default: train it to the end)",
        minimum=-1,
        metavar="STEPS",
    )

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder has gradients at the start, however soon it is frozen."""
        return self.stop_text_encoder_training != -1

    @property
    def text_encoder_stops_at(self) -> int | None:
        """Steps after which the text encoder is frozen; None where it is trained to the end."""
        return self.stop_text_encoder_training if self.trains_text_encoder else None


@dataclass(frozen=True)
class FineTuningOptions(WholeModelOptions):
    """Of fine_tune.py: the text encoder is frozen, unless --train_text_encoder is given."""

    HOW_TO_FREEZE: ClassVar[str] = "without --train_text_encoder"

    train_text_encoder: bool = option(False, help="train the text encoder too", on_resume="same")

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder is trained."""
        return self.train_text_encoder


_EMBEDDING_FILE_ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin", ".png")
_CAPTION_SYNTAX = "()[]{}|\\,"  # the characters of prompt weights, wildcards and tags


@dataclass(frozen=True)
class TextualInversionOptions:
    """The token of the embedding, its vectors and its captions."""

    GROUP: ClassVar[str] = "Textual inversion"
    HOW_TO_FREEZE: ClassVar[str] = ""  # it holds the trained vectors
    trains_text_encoder: ClassVar[bool] = True

    token_string: str | None = option(
        help="the token that stands for the embedding in captions and prompts; not one of the vocabulary: <my-dog>",
        required=True,
        metavar="TOKEN",
        on_resume="same",
    )
    num_vectors_per_token: int | None = option(
        help="number of vectors; each takes one token of a prompt (default: as many as --weights holds, or 1)",
        minimum=1,
        maximum=75,
        on_resume="same",
    )
    init_word: str | None = option(
        help="initialise the vectors from this word of the vocabulary (default: at random)", metavar="TEXT"
    )
    weights: str | None = option(
        help="start from the embedding in this file: of this program, of Diffusers, or of a web UI (.pt, .png)",
        metavar="FILE",
    )
    use_object_template: bool = option(
        False, help='train with captions such as "a photo of a TOKEN" instead of those of the images'
    )
    use_style_template: bool = option(
        False, help='train with captions such as "a painting in the style of TOKEN" instead of those of the images'
    )
    xti: bool = option(
        False,
        help="extended textual inversion (P+): train separate vectors for each cross-attention layer of the U-Net",
        on_resume="same",
    )
    save_model_as: str = option(
        "pt",
        help="format of the embedding file; pt and ckpt are the format of web UIs",
        choices=("safetensors", "ckpt", "pt"),
        off=(False, "none"),
    )

    def learning_rates(self, default: float) -> dict[str, float]:
        """The rate of the embedding."""
        return {"learning_rate": default}

    def check(self) -> Iterator[UserError]:
        if self.use_object_template and self.use_style_template:
            yield UserError(
                "--use_object_template and --use_style_template cannot be combined", hint="give one of them"
            )
        if self.init_word is not None and not self.init_word.strip():
            yield UserError("--init_word is empty", hint="give a word of the vocabulary, or leave it out")
        yield from self._token_problems()
        yield from self._file_problems()

    def _token_problems(self) -> Iterator[UserError]:
        token = self.token_string
        if token is None:
            return
        if not token or token != "".join(token.split()):
            yield UserError(
                f"--token_string {token!r} is empty or has spaces", hint="give a token without spaces: <my-dog>"
            )
        elif any(sign in token for sign in _CAPTION_SYNTAX):
            yield UserError(
                f"--token_string {token} has characters of the caption syntax: {_CAPTION_SYNTAX}",
                hint="give a token of letters, digits, <, >, - and _: <my-dog>",
            )
        elif is_one_token(token):
            yield UserError(
                f"--token_string {token} is in the model's vocabulary already",
                hint=f"give a token that it does not know, such as <{token.strip('<>') or 'my-dog'}>",
            )

    def _file_problems(self) -> Iterator[UserError]:
        if self.weights is None:
            return
        path = Path(self.weights)
        if not path.is_file():
            yield UserError(f"--weights {path} does not exist", hint="give the path of an embedding file")
        elif path.suffix.lower() not in _EMBEDDING_FILE_ENDINGS:
            yield UserError(
                f"--weights {path}: unknown kind of file {path.suffix or '(no ending)'!r}",
                hint=f"known endings: {', '.join(_EMBEDDING_FILE_ENDINGS)}",
            )

    @property
    def templates(self) -> tuple[str, ...]:
        """The caption templates; empty where the images' own captions are used."""
        if self.use_object_template:
            return OBJECT_TEMPLATES
        return STYLE_TEMPLATES if self.use_style_template else ()
