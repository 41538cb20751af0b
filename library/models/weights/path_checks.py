"""Checks of a model's path without reading its weights. Standard library only, so that they are instant."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from library.cli.errors import UserError
from library.models.options import ModelOptions
from library.models.weights.model_kinds import OtherKind, has_vae, kind_of_folder, kind_of_keys
from library.models.weights.safetensors_header import HeaderError, read_header

SAFETENSORS_ENDING = ".safetensors"
PICKLE_ENDINGS = (".ckpt", ".pt", ".bin")
SINGLE_FILE_ENDINGS = (SAFETENSORS_ENDING, *PICKLE_ENDINGS)

# file names in each part of a Diffusers folder, the best first
_DIFFUSERS_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)
_TRANSFORMERS_WEIGHTS = (
    "model.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "pytorch_model.fp16.bin",
)
WEIGHT_FILES = {"unet": _DIFFUSERS_WEIGHTS, "vae": _DIFFUSERS_WEIGHTS, "text_encoder": _TRANSFORMERS_WEIGHTS}

FLAG = "--pretrained_model_name_or_path"
VAE_FLAG = "--vae"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_DOWNLOAD_AGAIN = "copy or download it again"
_KNOWN = "this program supports Stable Diffusion 1.x and 2.x: give such a model"


def model_problems(options: ModelOptions) -> list[UserError]:
    """Problems of the paths of the model and of `--vae`.

    Checks names, sizes and the headers of .safetensors files. A missing option is reported by the parser; what may be
    a name on the Hub is checked when it is loaded.
    """
    problems = []
    model, vae = options.pretrained_model_name_or_path, options.vae
    if model is not None:
        problems += _path_problems(FLAG, model, partial(_folder_problems, needs_vae=vae is None), _kind_problem)
    if vae is not None:
        problems += _path_problems(VAE_FLAG, vae, lambda folder: [], _vae_problem)
    return problems


def about_flag(flag: str, error: UserError) -> UserError:
    """An error about a model, for a program where the user gives it with another flag than the training scripts'."""
    return UserError(error.message.replace(FLAG, flag), error.hint)


def encoder_problems(path: str, flag: str) -> list[UserError]:
    """Problems of the path, given with `flag`, of what encodes images: a model or a VAE alone."""
    return _path_problems(
        flag, path, lambda folder: list(filter(None, [_encoder_problem(flag, folder)])), _encoder_problem
    )


def other_family(path: str) -> str | None:
    """The name of the model family at `path` where its keys show that it is not Stable Diffusion 1.x or 2.x.

    None for Stable Diffusion 1.x and 2.x, for what is not a whole model, and where headers do not show it: pickles,
    names on the Hub, damaged files.
    """
    kind = _other_kind(Path(path))
    return None if kind is None else kind.family


def _other_kind(path: Path) -> OtherKind | None:
    if path.is_dir():
        return kind_of_folder(path)
    keys = _safetensors_keys(path)
    return None if keys is None else kind_of_keys(keys)


def _safetensors_keys(path: Path) -> Collection[str] | None:
    """The keys of a valid .safetensors file; None for other files."""
    if path.suffix.lower() != SAFETENSORS_ENDING:
        return None
    try:
        return read_header(path).tensors
    except (HeaderError, OSError):
        return None


def _kind_problem(flag: str, path: Path) -> UserError | None:
    kind = _other_kind(path)
    return None if kind is None else UserError(f"{flag} {path} is {kind.phrase}", _KNOWN)


def _vae_problem(flag: str, path: Path) -> UserError | None:
    keys = _safetensors_keys(path)
    if keys is None or has_vae(keys):
        return None
    return UserError(f"{flag} {path} holds no VAE", "give a VAE, or a Stable Diffusion model with one")


def _encoder_problem(flag: str, path: Path) -> UserError | None:
    if other_family(str(path)) is not None:
        return _kind_problem(flag, path)
    return None if path.is_dir() else _vae_problem(flag, path)


def _path_problems(
    flag: str,
    path: str,
    folder_problems: Callable[[Path], list[UserError]],
    kind_problem: Callable[[str, Path], UserError | None],
) -> list[UserError]:
    if Path(path).is_dir():
        return folder_problems(Path(path))
    if Path(path).is_file():
        problems = _file_problems(flag, Path(path))
        problem = None if problems else kind_problem(flag, Path(path))
        return problems if problem is None else [problem]
    if is_hub_id(path):
        return []
    return [UserError(f"{flag} {path}: there is no such file or folder", "check the path")]


def is_hub_id(path: str) -> bool:
    """Whether `path`, which is no file or folder, can be a name on the Hub: owner/name, and no folder `owner` here."""
    owner = path.split("/", 1)[0]
    is_file_name = path.lower().endswith(SINGLE_FILE_ENDINGS)
    return _HUB_ID.fullmatch(path) is not None and not is_file_name and not Path(owner).exists()


def find_weights(folder: Path, part: str) -> Path | None:
    """The file of weights of one part ("unet", "vae", "text_encoder") in its folder, if there is one."""
    return next((folder / name for name in WEIGHT_FILES[part] if (folder / name).is_file()), None)


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a .safetensors file, by its header and size: a phrase, or None."""
    try:
        read_header(path)
    except HeaderError as error:
        return str(error)
    return None


def _file_problems(flag: str, path: Path) -> list[UserError]:
    ending = path.suffix.lower()
    if ending not in SINGLE_FILE_ENDINGS:
        return [
            UserError(
                f"{flag} {path}: unknown kind of file {path.suffix or '(no ending)'!r}",
                f"a model is a Diffusers folder or a file ending in {', '.join(SINGLE_FILE_ENDINGS)}",
            )
        ]
    problem = weight_file_problem(path)
    return [] if problem is None else [UserError(f"{flag} {path} {problem}", _DOWNLOAD_AGAIN)]


def weight_file_problem(path: Path) -> str | None:
    """What is wrong with a file of weights, by its header or size: a phrase, or None."""
    if not os.access(path, os.R_OK):
        return "is not readable"
    if path.suffix.lower() == SAFETENSORS_ENDING:
        return safetensors_problem(path)
    return "is empty (0 bytes)" if path.stat().st_size == 0 else None


def _folder_problems(folder: Path, needs_vae: bool) -> list[UserError]:
    problem = _kind_problem(FLAG, folder)
    if problem is not None:
        return [problem]
    if not (folder / "model_index.json").is_file() and not (folder / "unet").is_dir():
        return [
            UserError(
                f"{FLAG} {folder}: not a Diffusers model, it has neither model_index.json nor unet/",
                "give the folder that holds model_index.json, or a single .safetensors or .ckpt file",
            )
        ]
    problems = []
    for part in WEIGHT_FILES:
        if part != "vae" or needs_vae:
            problems.extend(_part_problems(folder, part))
    return problems


def _part_problems(folder: Path, part: str) -> list[UserError]:
    if not (folder / part).is_dir():
        return [UserError(f"{FLAG} {folder}: lacks the folder {part}/", "a Stable Diffusion 1.x or 2.x model has one")]
    problems = []
    if not (folder / part / "config.json").is_file():
        problems.append(UserError(f"{FLAG} {folder}: lacks {part}/config.json", _DOWNLOAD_AGAIN))
    weights = find_weights(folder / part, part)
    if weights is None:
        hint = f"looked for {', '.join(WEIGHT_FILES[part])}"
        problems.append(UserError(f"{FLAG} {folder}: no weights in {part}/", hint))
    else:
        problem = weight_file_problem(weights)
        if problem is not None:
            problems.append(UserError(f"{FLAG}: {weights} {problem}", _DOWNLOAD_AGAIN))
    return problems
