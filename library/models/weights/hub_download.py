"""Models named by their Hugging Face Hub repository, "owner/name": from the cache or downloaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from library.cli.errors import UserError, first_line
from library.models.weights.path_checks import INDEX_ENDING, is_hub_id, read_shards, weight_names

_CONFIGURATIONS = ("*.json", "tokenizer*/*.txt")  # indices of shards among them
_PART = re.compile(r"unet|transformer|vae|text_encoder(_\d)?")
_USUAL_PARTS = ("unet", "vae", "text_encoder")


def local_path(path: str, flag: str) -> Path:
    """`path` itself where it exists; else the folder in the Hub's cache that holds that model, downloaded if need be.

    Raises `UserError` where the Hub has no such model, or cannot be reached and the cache has none either.
    """
    if Path(path).exists() or not is_hub_id(path):
        return Path(path)
    with hub_errors(f"{flag} {path}", "give the path of a local model, or connect once to download it"):
        return _fetch(path, flag)


def hub_configurations(path: str, flag: str) -> Path | None:
    """The folder in the Hub's cache that holds the small files of the model of that name, downloaded if need be.

    None for what is no name on the Hub. Raises `UserError` as `local_path` does.
    """
    if Path(path).exists() or not is_hub_id(path):
        return None
    with hub_errors(f"{flag} {path}", "give the path of a local model, or connect once to download it"):
        return _fetch_configurations(path, flag)


@contextmanager
def hub_errors(named: str, hint: str) -> Iterator[None]:
    """Turns the errors of a download into `UserError`. `named`: the option and its value; `hint`: for no network."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{named}: it is a gated model", "accept its conditions on the Hub, then: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{named}: neither a file or folder here nor a model on the Hub",
            "check the spelling; a private model needs: hf auth login",
        ) from error
    except (OSError, LocalEntryNotFoundError, ValueError) as error:
        raise UserError(
            f"{named}: no file or folder here, the Hub cannot be reached, and its cache has no such model", hint
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{named}: {first_line(error)}", "give a model that has this file") from error


def _fetch(repo_id: str, flag: str) -> Path:
    """Downloads configurations, the tokenizer, and the best available weights of each part."""
    from huggingface_hub import snapshot_download

    folder = _fetch_configurations(repo_id, flag)
    if (folder / "model_index.json").is_file():
        folders = {f"{part}/": weight_names(part) for part in _parts(folder)}
    else:
        folders = {"": weight_names("vae")}  # a VAE alone
    present = [
        subfolder for subfolder, names in folders.items() if any(_is_whole(folder / subfolder / name) for name in names)
    ]
    folders = {subfolder: names for subfolder, names in folders.items() if subfolder not in present}
    for number in range(len(weight_names("unet"))):
        wanted: list[str] = []
        names = {subfolder: candidates[number] for subfolder, candidates in folders.items()}
        for subfolder, name in names.items():
            if not name.endswith(INDEX_ENDING):
                wanted.append(subfolder + name)
            elif (folder / subfolder / name).is_file():
                shards = dict.fromkeys(read_shards(folder / subfolder / name).values())
                wanted += [subfolder + shard for shard in shards]
        if wanted:
            folder = Path(snapshot_download(repo_id, allow_patterns=wanted))
        found = [subfolder for subfolder, name in names.items() if (folder / subfolder / name).is_file()]
        folders = {subfolder: each for subfolder, each in folders.items() if subfolder not in found}
    return folder


def _fetch_configurations(repo_id: str, flag: str) -> Path:
    """Raises `UserError` for a repository that is neither a Diffusers model nor a part of one."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo_id, allow_patterns=list(_CONFIGURATIONS)))
    if not (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"{flag} {repo_id}: the repository is not in the Diffusers layout",
            "download a single file from it, and give its path",
        )
    return folder


def _is_whole(path: Path) -> bool:
    return path.suffix != INDEX_ENDING and path.is_file()


def _parts(folder: Path) -> tuple[str, ...]:
    """The parts with weights that model_index.json names."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return _USUAL_PARTS
    named = index.items() if isinstance(index, dict) else ()
    parts = tuple(name for name, value in named if _PART.fullmatch(name) and value and value[0])
    return parts or _USUAL_PARTS
