"""The images of a metadata file whose latents are made before training: found, and their headers read.

PyTorch is not imported: what is wrong with the files is said before a model is loaded.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from library.cli.errors import UserError, listed, plural, raise_together
from library.cli.jobs.outcome import Outcome
from library.cli.launcher import is_first_process
from library.data.config.config import SubsetConfig
from library.data.images.image_files import NoImages
from library.data.records import ImageRecord
from library.data.scan.header_scan import read_headers
from library.data.scan.image_search import find_images
from library.data.scan.legacy_npz import legacy_npz_path
from library.data.scan.metadata_file import FoundImage, find_images_of_entries, make_record, root_folder
from library.metadata.options import PrepareOptions

logger = logging.getLogger(__name__)

HAS_LATENTS = "they have latents"  # why images are skipped

_MAX_NAMES_IN_WARNING = 5
_MAX_NAMES_IN_ERROR = 200


def find_entries(options: PrepareOptions, subset: SubsetConfig) -> list[FoundImage]:
    """The image of each entry. Raises `UserError` with all that makes it unclear which image has which latents."""
    problems: list[UserError] = []
    found = find_images_of_entries(subset, problems)
    raise_together([*problems, *_shared_files(found)])
    if is_first_process():
        _warn_of_others(options, found)
    return found


def _shared_files(found: Sequence[FoundImage]) -> Iterator[UserError]:
    """Images of one name with different extensions, which would have one file of latents."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for each in found:
        by_file[legacy_npz_path(each.path)].append(each.path)
    shared = [f"{' and '.join(paths)} ({file})" for file, paths in by_file.items() if len(paths) > 1]
    if shared:
        yield UserError(
            f"{plural(len(shared), 'file')} of latents would be of several images:"
            f" {listed(shared, _MAX_NAMES_IN_ERROR)}",
            hint="rename images that differ by their extension only",
        )


def _warn_of_others(options: PrepareOptions, found: Sequence[FoundImage]) -> None:
    try:
        images = find_images(options.folder, recursive=options.recursive)
    except NoImages:  # the entries may name images elsewhere, and those that are not found are named
        return
    known = {os.path.abspath(each.path) for each in found}
    others = [image for image in images if os.path.abspath(image) not in known]
    if others:
        logger.warning(
            "%s no entry in %s and no latents are made of them: %s", plural(len(others), "image has", "images have"),
            options.source, listed(others, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def read_records(
    found: Sequence[FoundImage], subset: SubsetConfig, options: PrepareOptions, outcome: Outcome
) -> list[ImageRecord]:
    """The records of all images that can be read, without legacy latents; the others fail.

    With `--skip_existing`, an image that is gone and has latents keeps these, and has no record.
    """
    headers = read_headers([each.path for each in found if each.exists])
    by_path = dict(zip((each.path for each in found if each.exists), headers, strict=True))
    root, records = root_folder(subset), []
    for each in found:
        header = by_path.get(each.path)
        if isinstance(header, UserError):
            outcome.failed[each.path] = header.message
        elif header is not None:
            record = make_record(each, header, root, subset)
            record.legacy_npz = None  # those that are there are made again, or checked
            records.append(record)
        elif options.skip_existing and each.legacy_npz is not None:
            outcome.skipped[HAS_LATENTS] += is_first_process()
        else:
            outcome.failed[each.entry.key] = f"no image is found at {each.path}"
    return records
