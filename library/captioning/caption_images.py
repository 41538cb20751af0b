"""Captions the images of a folder: the scripts finetune/make_captions.py (BLIP) and make_captions_by_git.py (GIT)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from library.captioning.caption_options import BlipOptions, CaptionFileOptions, GitOptions
from library.captioning.options import InferenceOptions
from library.cli.jobs.job import Job
from library.cli.jobs.options import FolderOptions
from library.cli.jobs.outcome import Outcome
from library.cli.parser import Options

if TYPE_CHECKING:
    import torch

    from library.captioning.caption_model import CaptionModel

logger = logging.getLogger(__name__)

GenerationOf = Callable[[Sequence[str]], dict[str, Any]]  # keys of a batch's images -> arguments of `generate`


def run_blip(options: Options, outcome: Outcome) -> None:
    blip = options[BlipOptions]

    def generation(keys: Sequence[str]) -> dict[str, Any]:
        from library.captioning.sampling import KeyedNucleusSampling

        length = {"max_length": blip.max_length, "min_length": blip.min_length, "do_sample": False}
        if blip.beam_search:
            return {**length, "num_beams": blip.num_beams}
        return {**length, "logits_processor": [KeyedNucleusSampling(keys, blip.seed, blip.top_p)]}

    def load() -> CaptionModel:
        from library.captioning.caption_model import load_caption_model

        return load_caption_model("blip", blip.caption_weights, "--caption_weights", options[InferenceOptions].device)

    _caption(options, outcome, load, generation, lambda caption: caption)


def run_git(options: Options, outcome: Outcome) -> None:
    from library.captioning.caption_text import remove_writing

    git = options[GitOptions]

    def load() -> CaptionModel:
        from library.captioning.caption_model import load_caption_model

        return load_caption_model("git", git.model_id, "--model_id", options[InferenceOptions].device)

    change = remove_writing if git.remove_words else (lambda caption: caption)
    _caption(options, outcome, load, lambda keys: {"max_length": git.max_length, "do_sample": False}, change)


def _caption(
    options: Options,
    outcome: Outcome,
    load: Callable[[], CaptionModel],
    generation: GenerationOf,
    change: Callable[[str], str],
) -> None:
    """Captions this process's share of the images. `change`: what becomes of a caption before it is written."""
    from library.captioning.caption_files import caption_path, images_to_caption, write_caption
    from library.captioning.pipeline import Stages, process_images
    from library.data.scan.image_search import find_images

    folder, files, inference = options[FolderOptions], options[CaptionFileOptions], options[InferenceOptions]
    images = find_images(folder.folder, recursive=folder.recursive)
    images = images_to_caption(images, files.caption_extension, outcome, keeps_existing=not inference.overwrite)
    if not images:
        return
    model = load()

    def infer(paths: Sequence[str], pixels: Sequence[torch.Tensor]) -> list[str]:
        found = model.captions(pixels, **generation([image_key(path, folder.folder) for path in paths]))
        captions = [f"{files.prefix}{change(caption)}{files.postfix}" for caption in found]
        if inference.debug:
            for path, caption in zip(paths, captions, strict=True):
                logger.info("%s: %s", path, caption)
        return captions

    def store(path: str, caption: str) -> None:
        write_caption(caption_path(path, files.caption_extension), caption)

    process_images(
        images,
        Stages(model.load, infer, store),
        outcome,
        batch_size=inference.batch_size,
        num_threads=inference.num_threads(),
        title="captioning",
    )


def image_key(path: str, folder: str) -> str:
    """What is random about an image depends on this: its path below the folder, the same on all systems."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


BLIP_JOB = Job(
    "make_captions.py",
    "Captions images with BLIP: one caption file beside each.",
    (FolderOptions, BlipOptions, CaptionFileOptions, InferenceOptions),
    run_blip,
    "captioned",
)
GIT_JOB = Job(
    "make_captions_by_git.py",
    "Captions images with GIT: one caption file beside each.",
    (FolderOptions, GitOptions, CaptionFileOptions, InferenceOptions),
    run_git,
    "captioned",
)
