"""Options of what is trained: an adapter network, the whole model, or a new word."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.data.caption_templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from library.models.model_saving import FORMATS
from library.models.vocabulary import is_one_token


@dataclass(frozen=True)
class NetworkOptions:
    """The adapter network and its learning rates."""

    GROUP: ClassVar[str] = "LoRA network"

    network_module: str = option(
        "networks.lora", help="Python module of the network", metavar="MODULE", on_resume="same"
    )
    network_dim: int = option(4, help="rank: more can learn more, and makes a larger file", minimum=1, on_resume="same")
    network_alpha: float = option(1.0, help="the network's output is scaled by alpha / dim", above=0, on_resume="same")
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
        aliases=("learning_rate_te",),
        on_resume="kept",
    )
    network_train_unet_only: bool = option(False, help="train no part on the text encoder", on_resume="same")
    network_train_text_encoder_only: bool = option(False, help="train no part on the U-Net", on_resume="same")

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
    def text_encoder_learns(self) -> bool:
        """Whether the text encoder is made ready for training, however soon it stops."""
        return True

    @property
    def text_encoder_stops_at(self) -> int | None:
        """Steps after which the text encoder stays as it is; None where it learns to the end."""
        return None

    def problems(self) -> Iterator[UserError]:
        if self.learning_rate_te is not None and not self.text_encoder_learns:
            yield UserError(
                f"--learning_rate_te {self.learning_rate_te} is given, but the text encoder is not trained",
                hint=f"leave it out; the text encoder is not trained {self.HOW_TO_FREEZE}",
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
    def text_encoder_learns(self) -> bool:
        """Whether the text encoder is made ready for training, however soon it stops."""
        return self.stop_text_encoder_training != -1

    @property
    def text_encoder_stops_at(self) -> int | None:
        """Steps after which the text encoder stays as it is; None where it learns to the end."""
        return self.stop_text_encoder_training if self.text_encoder_learns else None


@dataclass(frozen=True)
class FineTuningOptions(WholeModelOptions):
    """Of fine_tune.py: the text encoder stays as it is, unless its user asks."""

    HOW_TO_FREEZE: ClassVar[str] = "without --train_text_encoder"

    train_text_encoder: bool = option(False, help="let the text encoder learn too", on_resume="same")

    @property
    def text_encoder_learns(self) -> bool:
        """Whether the text encoder learns."""
        return self.train_text_encoder


_WORD_FILE_ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin", ".png")
_SIGNS_OF_CAPTIONS = "()[]{}|\\,"  # which weigh, choose and divide there


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
        False, help="learn vectors for each cross-attention layer of the U-Net (P+, extended textual inversion)",
        on_resume="same",
    )
    save_model_as: str = option(
        "safetensors", help="form of the file; pt and ckpt are that of web UIs", choices=("safetensors", "ckpt", "pt")
    )

    def problems(self) -> Iterator[UserError]:
        if self.use_object_template and self.use_style_template:
            yield UserError(
                "--use_object_template and --use_style_template are different captions", hint="give one of them"
            )
        if self.init_word is not None and not self.init_word.strip():
            yield UserError("--init_word is empty", hint="give a word that comes close, or leave it out")
        yield from self._word_problems()
        yield from self._file_problems()

    def _word_problems(self) -> Iterator[UserError]:
        word = self.token_string
        if word is None:
            return
        if not word or word != "".join(word.split()):
            yield UserError(f"--token_string {word!r} is not one word", hint="give a word without spaces: <my-dog>")
        elif any(sign in word for sign in _SIGNS_OF_CAPTIONS):
            yield UserError(
                f"--token_string {word} holds signs that mean something else in captions: {_SIGNS_OF_CAPTIONS}",
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
        elif path.suffix.lower() not in _WORD_FILE_ENDINGS:
            yield UserError(
                f"--weights {path}: unknown kind of file {path.suffix or '(no ending)'!r}",
                hint=f"known endings: {', '.join(_WORD_FILE_ENDINGS)}",
            )

    @property
    def templates(self) -> tuple[str, ...]:
        """What stands in place of captions; nothing where they are used themselves."""
        if self.use_object_template:
            return OBJECT_TEMPLATES
        return STYLE_TEMPLATES if self.use_style_template else ()
