"""Which model is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.options import option


@dataclass(frozen=True)
class ModelOptions:
    """Where the model is, and what its user says of it."""

    GROUP: ClassVar[str] = "Model"

    pretrained_model_name_or_path: str | None = option(
        None,
        required=True,
        metavar="PATH",
        help="the model to train on: a Diffusers folder, or a .safetensors or .ckpt file in the Stability layout",
    )
    v2: bool = option(
        False, help="the model is Stable Diffusion 2.x (found out from the model; a contradiction is an error)"
    )
    v_parameterization: bool = option(
        False,
        help="the model predicts v, not noise (needed for single files such as SD 2.x 768, which do not say so)",
    )


_TOKEN_LENGTHS = (75, 150, 225)


def parse_token_length(value: Any) -> int:
    """75, 150 or 225, as a number or a text. Raises `ValueError` with what was expected."""
    expected = ValueError(f"one of {', '.join(map(str, _TOKEN_LENGTHS))}")
    try:
        length = int(value)
    except (TypeError, ValueError):
        raise expected from None
    if isinstance(value, (bool, float)) or length not in _TOKEN_LENGTHS:
        raise expected
    return length


@dataclass(frozen=True)
class PromptOptions:
    """How captions and prompts reach the model."""

    GROUP: ClassVar[str] = "Prompts"

    clip_skip: int | None = option(
        None, help="take the text encoder's output at the n-th layer from its end; 1 is the last", minimum=1
    )
    max_token_length: int = option(
        75, help="tokens of a caption that are read, 75, 150 or 225, in pieces of 75", parse=parse_token_length,
        metavar="N",
    )  # fmt: skip
    weighted_captions: bool = option(
        False, help="brackets weigh parts of captions: (more), (much:1.3), [less]; \\( and \\[ are plain brackets"
    )
    no_token_padding: bool = False  # of train_db.py: captions are padded to the longest of their batch
