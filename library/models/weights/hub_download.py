"""Models named by their Hugging Face Hub repository, "owner/name": from the cache or downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from library.cli.errors import UserError, first_line
from library.models.weights.path_checks import WEIGHT_FILES, is_hub_id

_CONFIGURATIONS = ("*.json", "tokenizer/*.txt")
_NUM_CANDIDATES = len(WEIGHT_FILES["unet"])


def local_path(path: str, flag: str) -> Path:
    """`path` itself where it exists; else the folder in the Hub's cache that holds that model, downloaded if need be.

    Raises `UserError` where the Hub has no such model, or cannot be reached and the cache has none either.
    """
    if Path(path).exists() or not is_hub_id(path):
        return Path(path)
    with hub_errors(f"{flag} {path}", "give the path of a local model, or connect once to download it"):
        return _fetch(path, flag)


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

    folder = Path(snapshot_download(repo_id, allow_patterns=list(_CONFIGURATIONS)))
    if (folder / "model_index.json").is_file():
        folders = {f"{part}/": candidates for part, candidates in WEIGHT_FILES.items()}
    elif (folder / "config.json").is_file():
        folders = {"": WEIGHT_FILES["vae"]}  # a VAE alone
    else:
        raise UserError(
            f"{flag} {repo_id}: the repository is not in the Diffusers layout",
            "download a single file from it, and give its path",
        )
    for number in range(_NUM_CANDIDATES):
        wanted = [
            subfolder + candidates[number]
            for subfolder, candidates in folders.items()
            if not any((folder / subfolder / candidate).is_file() for candidate in candidates)
        ]
        if wanted:
            folder = Path(snapshot_download(repo_id, allow_patterns=wanted))
    return folder
