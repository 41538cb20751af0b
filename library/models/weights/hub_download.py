"""Models named by their Hugging Face Hub repository, "owner/name": from the cache or downloaded."""

from __future__ import annotations

from pathlib import Path

from library.cli.errors import UserError
from library.models.weights.path_checks import WEIGHT_FILES, is_hub_id

_CONFIGURATIONS = ("*.json", "tokenizer/*.txt")
_NUM_CANDIDATES = len(WEIGHT_FILES["unet"])


def local_path(path: str, flag: str) -> Path:
    """`path` itself where it exists; else the folder in the Hub's cache that holds that model, downloaded if need be.

    Raises `UserError` where the Hub has no such model, or cannot be reached and the cache has none either.
    """
    if Path(path).exists() or not is_hub_id(path):
        return Path(path)
    return _download(path, flag)


def _download(repo_id: str, flag: str) -> Path:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return _fetch(repo_id, flag)
    except GatedRepoError as error:
        raise UserError(
            f"{flag} {repo_id}: it is a gated model", "accept its conditions on the Hub, then: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{flag} {repo_id}: neither a file or folder here nor a model on the Hub",
            "check the spelling; a private model needs: hf auth login",
        ) from error
    except (OSError, LocalEntryNotFoundError, ValueError) as error:
        raise UserError(
            f"{flag} {repo_id}: no file or folder here, the Hub cannot be reached, and its cache has no such model",
            "give the path of a local model, or connect once to download it",
        ) from error


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
