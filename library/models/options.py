"""Which model is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
