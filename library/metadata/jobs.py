"""The stand-alone scripts that write metadata files. What they do is imported when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from library.cli.jobs.job import Job
from library.cli.jobs.outcome import Outcome
from library.cli.parser import Options
from library.metadata.options import CleanOptions, MergeOptions, PrepareOptions, TagMergeOptions


def _merge_captions(options: Options, outcome: Outcome) -> None:
    from library.metadata.merging import merge_captions

    merge_captions(options[MergeOptions], outcome)


def _merge_tags(options: Options, outcome: Outcome) -> None:
    from library.metadata.merging import merge_tags

    merge_tags(options[MergeOptions], outcome)


def _clean(table: Mapping[str, Any], script: str, options: Options, outcome: Outcome) -> None:
    from library.metadata.cleaning import clean_metadata

    clean_metadata(options[CleanOptions], table, f"RULES in {script}", outcome)


def _prepare(options: Options, outcome: Outcome) -> None:
    from library.data.config.config import SubsetConfig
    from library.metadata.prepared_images import find_entries

    own = options[PrepareOptions]
    subset = SubsetConfig("IN_JSON", image_dir=own.folder, metadata_file=own.source, flip_aug=own.flip_aug)
    found = find_entries(own, subset)

    from library.models.light_imports import import_diffusers

    import_diffusers()  # with PyTorch: only where the files can be read
    from library.metadata.latents import prepare_latents

    prepare_latents(found, subset, own, outcome)


def _write_resolutions(options: Options, outcome: Outcome) -> None:
    from library.metadata.latents import write_resolutions

    write_resolutions(options[PrepareOptions], outcome)


MERGE_CAPTIONS = Job(
    "merge_captions_to_metadata.py",
    "Merges the caption files beside images into a metadata file, as the captions of its entries.",
    (MergeOptions,),
    _merge_captions,
    done="merged",
    first_process_only=True,
)
MERGE_TAGS = Job(
    "merge_dd_tags_to_metadata.py",
    "Merges the tag files beside images, of DeepDanbooru or WD14 taggers, into a metadata file, as the tags of its"
    " entries.",
    (TagMergeOptions,),
    _merge_tags,
    done="merged",
    first_process_only=True,
)
PREPARE = Job(
    "prepare_buckets_latents.py",
    "Encodes the images of a metadata file to latents, in files beside them, and notes the bucket of each as its"
    " train_resolution: fine_tune.py then trains without the images.",
    (PrepareOptions,),
    _prepare,
    done="prepared",
    conclude=_write_resolutions,
)


def cleaning_job(table: Mapping[str, Any], script: str) -> Job:
    """The script whose file `script` holds the table of rules."""
    return Job(
        "clean_captions_and_tags.py",
        "Cleans the captions and tags of a metadata file, by the table of rules in this script or those of --rules.",
        (CleanOptions,),
        partial(_clean, table, script),
        done="cleaned",
        first_process_only=True,
    )
