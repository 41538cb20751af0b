"""Checks of a model's path without reading its weights. Standard library only, so that they are instant."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from library.cli.errors import UserError
from library.models.weights.safetensors_header import HeaderError, read_header

SAFETENSORS_ENDING = ".safetensors"
PICKLE_ENDINGS = (".ckpt", ".pt", ".bin")
SINGLE_FILE_ENDINGS = (SAFETENSORS_ENDING, *PICKLE_ENDINGS)

INDEX_ENDING = ".json"  # of the index of a sharded part: diffusion_pytorch_model.safetensors.index.json


def _weight_files(safe: str, pickled: str) -> tuple[str, ...]:
    """The names of a part's weights, the best first: each whole or as the index of its shards, each in fp16 too."""
    return tuple(
        name
        for stem, ending in ((safe, "safetensors"), (pickled, "bin"))
        for variant in ("", ".fp16")
        for name in (f"{stem}{variant}.{ending}", f"{stem}.{ending}.index{variant}.json")
    )


_DIFFUSERS_WEIGHTS = _weight_files("diffusion_pytorch_model", "diffusion_pytorch_model")
_TRANSFORMERS_WEIGHTS = _weight_files("model", "pytorch_model")

FLAG = "--pretrained_model_name_or_path"
VAE_FLAG = "--vae"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_DOWNLOAD_AGAIN = "copy or download it again"


def about_flag(flag: str, error: UserError) -> UserError:
    """An error about a model, for a program where the user gives it with another flag than the training scripts'."""
    return UserError(error.message.replace(FLAG, flag), error.hint)


def is_hub_id(path: str) -> bool:
    """Whether `path`, which is no file or folder, can be a name on the Hub: owner/name, and no folder `owner` here."""
    owner = path.split("/", 1)[0]
    is_file_name = path.lower().endswith(SINGLE_FILE_ENDINGS)
    return _HUB_ID.fullmatch(path) is not None and not is_file_name and not Path(owner).exists()


def weight_names(part: str) -> tuple[str, ...]:
    """The names that the weights of a part ("unet", "vae", "text_encoder_2") can have in its folder, the best first."""
    return _TRANSFORMERS_WEIGHTS if part.startswith("text_encoder") else _DIFFUSERS_WEIGHTS


def looked_for(part: str) -> str:
    """The names of whole files among these, for messages."""
    return f"looked for {', '.join(name for name in weight_names(part) if not name.endswith(INDEX_ENDING))}"


def find_weights(folder: Path, part: str) -> Path | None:
    """The file of weights of a part in its folder, or the index of its shards, if there is one."""
    return next((folder / name for name in weight_names(part) if (folder / name).is_file()), None)


def read_shards(index: Path) -> dict[str, str]:
    """The name of the shard that holds each tensor, by an index. Raises `UserError` for a damaged one."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        shards = None
    if not isinstance(shards, dict) or not shards or not all(_is_file_name(name) for name in shards.values()):
        raise UserError(f"{index} is no index of the shards of a model", _DOWNLOAD_AGAIN)
    return shards


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.lower().endswith(SINGLE_FILE_ENDINGS)


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a .safetensors file, by its header and size: a phrase, or None."""
    try:
        read_header(path)
    except HeaderError as error:
        return str(error)
    return None


def file_problems(flag: str, path: Path) -> list[UserError]:
    """What is wrong with a file of weights that was given with `flag`, by its name and its header."""
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
    if path.suffix.lower() == INDEX_ENDING:
        return _shards_problem(path)
    return "is empty (0 bytes)" if path.stat().st_size == 0 else None


def _shards_problem(index: Path) -> str | None:
    try:
        shards = dict.fromkeys(read_shards(index).values())
    except UserError:
        return "is no index of the shards of a model"
    for name in shards:
        shard = index.parent / name
        problem = weight_file_problem(shard) if shard.is_file() else "does not exist"
        if problem is not None:
            return f"names {name}, which {problem}"
    return None


def part_problems(folder: Path, part: str, family: str) -> list[UserError]:
    """What is wrong with the folder of a part of a Diffusers model, which models of a `family` have."""
    if not (folder / part).is_dir():
        return [UserError(f"{FLAG} {folder}: lacks the folder {part}/", f"models of {family} have one")]
    problems = []
    if not (folder / part / "config.json").is_file():
        problems.append(UserError(f"{FLAG} {folder}: lacks {part}/config.json", _DOWNLOAD_AGAIN))
    weights = find_weights(folder / part, part)
    if weights is None:
        problems.append(UserError(f"{FLAG} {folder}: no weights in {part}/", looked_for(part)))
    else:
        problem = weight_file_problem(weights)
        if problem is not None:
            problems.append(UserError(f"{FLAG}: {weights} {problem}", _DOWNLOAD_AGAIN))
    return problems
