"""Tags the images of a folder: the script finetune/tag_images_by_wd14_tagger.py."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.captioning.options import InferenceOptions
from library.captioning.tagging.options import TagFileOptions, TaggerOptions, TagOptions
from library.cli.jobs.job import Job
from library.cli.jobs.options import FolderOptions
from library.cli.jobs.outcome import Outcome
from library.cli.parser import Options

if TYPE_CHECKING:
    import numpy as np

    from library.captioning.tagging.tag_files import Entries, Journal
    from library.captioning.tagging.tag_selection import TagRules
    from library.captioning.tagging.tagger import Tagger

logger = logging.getLogger(__name__)


def run(options: Options, outcome: Outcome) -> None:
    from library.captioning.pipeline import Stages, process_images
    from library.captioning.tagging.tag_files import Journal, read_entries, read_journals, with_tags
    from library.captioning.tagging.tag_list import read_tag_list
    from library.captioning.tagging.tag_selection import make_rules
    from library.captioning.tagging.tagger import Tagger, check_onnxruntime
    from library.captioning.tagging.tagger_files import find_tagger
    from library.cli.jobs.processes import rank_and_count
    from library.data.scan.image_search import find_images

    folder, files, inference = options[FolderOptions], options[TagFileOptions], options[InferenceOptions]
    images = find_images(folder.folder, recursive=folder.recursive)
    entries, journal = {}, None
    if files.output_path is not None:
        entries = with_tags(read_entries(files.output_path), read_journals(files.output_path))
    to_tag = _to_tag(images, files, entries, inference.overwrite, outcome)
    if not to_tag:
        return
    check_onnxruntime()
    found = find_tagger(options[TaggerOptions])
    tags = read_tag_list(str(found.tags))
    tagger = Tagger(found.model, len(tags), inference.device)
    rules = make_rules(tags, options[TagOptions], files.caption_separator)
    if files.output_path is not None:
        journal = Journal(files.output_path, rank_and_count()[0])
    writer = _Writer(files, entries, outcome, journal)
    process_images(
        to_tag,
        Stages(tagger.load, _Inference(tagger, rules, inference.debug), writer.store),
        outcome,
        batch_size=inference.batch_size,
        num_threads=inference.num_threads(),
        title="tagging",
    )


def conclude(options: Options, outcome: Outcome) -> None:
    """Writes the one file of all tags, and shows how often each was given."""
    from library.captioning.tagging.tag_files import (
        read_entries,
        read_journals,
        remove_journals,
        with_tags,
        write_entries,
    )

    files = options[TagFileOptions]
    if files.output_path is not None:
        texts = {image: text for image, (_, text) in outcome.results.items()}
        texts = {**read_journals(files.output_path), **texts}
        if texts:
            write_entries(files.output_path, with_tags(read_entries(files.output_path), texts))
        remove_journals(files.output_path)
    if files.frequency_tags:
        counts = Counter(tag for tags, _ in outcome.results.values() for tag in tags)
        for tag, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            logger.info("%s: %d", tag, count)


JOB = Job(
    "tag_images_by_wd14_tagger.py",
    "Tags images with a WD14 tagger: one tag file beside each, or one JSON file of all.",
    (FolderOptions, TaggerOptions, TagOptions, TagFileOptions, InferenceOptions),
    run,
    "tagged",
    conclude,
)


def _to_tag(
    images: list[str], files: TagFileOptions, entries: Entries, overwrite: bool, outcome: Outcome
) -> Sequence[str]:
    """This process's share of the images that are to be tagged."""
    from library.captioning.caption_files import images_to_caption
    from library.captioning.tagging.tag_files import tags_of
    from library.cli.jobs.processes import own_share

    keeps_existing = not (overwrite or files.append_tags)
    if files.output_path is None:
        return images_to_caption(images, files.caption_extension, outcome, keeps_existing=keeps_existing)
    share = own_share(images)
    missing = [image for image in share if tags_of(entries, image) is None] if keeps_existing else share
    outcome.skipped["--output_path has their tags, which --overwrite replaces"] += len(share) - len(missing)
    return missing


@dataclass(frozen=True)
class _Inference:
    tagger: Tagger
    rules: TagRules
    shows_tags: bool

    def __call__(self, paths: Sequence[str], images: Sequence[np.ndarray]) -> list[list[str]]:
        from library.captioning.tagging.tag_selection import select_tags

        selected = [select_tags(row, self.rules) for row in self.tagger.probabilities(images).tolist()]
        if self.shows_tags:
            for path, tags in zip(paths, selected, strict=True):
                logger.info("%s: %s", path, ", ".join(tags))
        return selected


@dataclass(frozen=True)
class _Writer:
    """Writes the tags of an image into its file, or keeps them for the one file of all."""

    files: TagFileOptions
    entries: Entries
    outcome: Outcome
    journal: Journal | None  # with the one file

    def store(self, image: str, tags: list[str]) -> None:
        from library.captioning.caption_files import caption_path, write_caption
        from library.captioning.tagging.tag_files import tags_of
        from library.captioning.tagging.tag_selection import append_tags
        from library.cli.documents import is_unicode
        from library.cli.errors import UserError

        if self.files.output_path is not None and not is_unicode(image):
            raise UserError(f"{ascii(image)}: its name is not Unicode, and cannot be written to JSON")
        path = None if self.files.output_path is not None else caption_path(image, self.files.caption_extension)
        existing = None
        if self.files.append_tags:
            existing = tags_of(self.entries, image) if path is None else _read(path)
        text = append_tags(existing or "", tags, self.files.caption_separator)
        if path is not None:
            write_caption(path, text)
        if self.journal is not None:
            self.journal.add(image, text)
        if self.journal is not None or self.files.frequency_tags:
            self.outcome.results[image] = (tags, text)


def _read(path: str) -> str:
    """The text of a tag file, all its lines; empty without one."""
    from library.data.captions import read_caption_file

    return read_caption_file(path, all_lines=True) if Path(path).exists() else ""
