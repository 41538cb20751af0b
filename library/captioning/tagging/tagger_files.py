"""The files of a tagger, model.onnx and selected_tags.csv: in a local folder, or downloaded into it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from library.captioning.tagging.options import DEFAULT_REPOSITORY, TaggerOptions
from library.models.weights.hub_download import hub_errors

logger = logging.getLogger(__name__)

MODEL_FILE, TAGS_FILE = "model.onnx", "selected_tags.csv"


@dataclass(frozen=True)
class TaggerFiles:
    model: Path
    tags: Path

    @property
    def exist(self) -> bool:
        return self.model.is_file() and self.tags.is_file()


def find_tagger(options: TaggerOptions) -> TaggerFiles:
    """The files of `--repo_id` in `--model_dir`, downloaded if need be; for the default tagger, those directly in it.

    Raises `UserError` that says what to put where if they are not there and cannot be downloaded.
    """
    own_folder = Path(options.model_dir) / options.repo_id.replace("/", "_")
    own, direct = _files_in(own_folder), _files_in(Path(options.model_dir))
    if own.exist and not options.force_download:
        return own
    if direct.exist and options.repo_id == DEFAULT_REPOSITORY and not options.force_download:
        logger.info("the tagger is %s", direct.model)
        return direct
    return _download(options.repo_id, own_folder, force=options.force_download)


def _files_in(folder: Path) -> TaggerFiles:
    return TaggerFiles(folder / MODEL_FILE, folder / TAGS_FILE)


def _download(repository: str, folder: Path, *, force: bool) -> TaggerFiles:
    """Downloads both files into `folder`; with `force` those that it has, too."""
    from huggingface_hub import hf_hub_download

    hint = f"put its files {MODEL_FILE} and {TAGS_FILE} into {folder}, or connect to the network to download them"
    logger.info("downloading tagger %s", repository)
    with hub_errors(f"--repo_id {repository}", hint):
        for name in (TAGS_FILE, MODEL_FILE):
            hf_hub_download(repository, name, local_dir=folder, force_download=force)
    return _files_in(folder)
