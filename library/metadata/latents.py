"""Latents made before training: legacy .npz files beside the images, and their `train_resolution` in the metadata."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from library.cli.errors import UserError, plural
from library.cli.jobs.outcome import Outcome
from library.cli.jobs.processes import own_share
from library.cli.launcher import is_first_process
from library.cli.logging import progress_bar
from library.data.batches.loader import num_cpus
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.caches.legacy_npz_latents import has_legacy_npz, write_legacy_npz
from library.data.caches.npz_files import remove_leftovers
from library.data.caches.pipeline import Stages, Throughput, cache_chunks, chunks_of
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.images.decoding import load_image
from library.data.records import CachedLatents, ImageRecord, LatentKey, size_text
from library.data.scan.legacy_npz import legacy_npz_path
from library.data.scan.metadata_file import FoundImage
from library.metadata.files import read_metadata, write_metadata
from library.metadata.options import MODEL, PrepareOptions
from library.metadata.prepared_images import HAS_LATENTS, read_records
from library.models.devices import DTYPES, check_precision, choose_device
from library.models.family import ImageEncoder, LoadSettings
from library.models.latent_encoding import encode_latents
from library.models.registry import load_encoder

logger = logging.getLogger(__name__)

_MOST_DECODERS = 8


def prepare_latents(
    found: Sequence[FoundImage], subset: SubsetConfig, options: PrepareOptions, outcome: Outcome
) -> None:
    """Encodes the images of a metadata file, or the share of this process, and writes their latents beside them.

    `outcome.results` gets the bucket of each image that has latents then, by its key. Images that are not found or
    cannot be read fail. Raises `UserError` for a model that cannot be loaded and for files that cannot be written.
    """
    device = choose_device(options.device)
    check_precision(options.mixed_precision, device.type)
    settings = LoadSettings(device, {"vae": DTYPES[options.mixed_precision]})
    encoder = load_encoder(options.model, MODEL, settings)
    records = read_records(found, subset, options, outcome)
    if not records:
        return
    dataset = _planned(records, subset, options)
    if is_first_process():
        for line in TrainingData((dataset,)).bucket_table():
            logger.info("%s", line)
        for folder in {os.path.dirname(record.path) for record in records}:
            remove_leftovers(folder)
    names = {each.path: each.entry.key for each in found}
    _Preparation(encoder, device, options, names, outcome).encode(_keys(dataset))


def _planned(records: Sequence[ImageRecord], subset: SubsetConfig, options: PrepareOptions) -> PlannedDataset:
    """The images in buckets, as training with these settings has them."""
    config = DatasetConfig(
        subset.key_path,
        options.bucket_settings.resolution,
        batch_size=options.batch_size,
        enable_bucket=True,
        min_bucket_reso=options.min_bucket_reso,
        max_bucket_reso=options.max_bucket_reso,
        bucket_reso_steps=options.bucket_settings.bucket_reso_steps,
        bucket_no_upscale=options.bucket_no_upscale,
        subsets=(subset,),
    )
    return PlannedDataset(config, records)


def _keys(dataset: PlannedDataset) -> list[LatentKey]:
    """The keys of all images, not flipped, with the files of their latents."""
    keys = (key for key in TrainingData((dataset,)).latent_keys() if not key.flipped)
    return [replace(key, legacy_npz_path=legacy_npz_path(key.path)) for key in keys]


class _Preparation:
    """Takes images through decoding, the VAE and writing; counts an image when all its files are written."""

    def __init__(
        self,
        encoder: ImageEncoder,
        device: torch.device,
        options: PrepareOptions,
        names: Mapping[str, str],
        outcome: Outcome,
    ):
        """names: the metadata keys of images, by path."""
        self._encoder = encoder
        self._device = device
        self._options = options
        self._names = names
        self._outcome = outcome
        self._fingerprint = encoder.vae_fingerprint()
        self._unwritten: Counter[str] = Counter()  # files of an image that are not written yet, by path

    def encode(self, keys: Sequence[LatentKey]) -> None:
        """Encodes the share of this process; the shares are the same whatever has been made before."""
        options = self._options
        num_decoders = options.max_data_loader_n_workers
        decoders = max(1, min(_MOST_DECODERS, num_cpus()) if num_decoders is None else num_decoders)
        chunks = self._missing(own_share(chunks_of(keys, options.batch_size)))
        num_images = sum(map(len, chunks))
        with progress_bar(num_images, "encoding", is_quiet=not num_images or not is_first_process()) as progress:
            try:
                unreadable = cache_chunks(
                    chunks,
                    Stages(load_image, self._encode, self._write),
                    Throughput(options.batch_size, decoders),
                    skips_unreadable=True,
                    on_done=progress.update,
                )
            except torch.OutOfMemoryError:
                raise UserError(
                    f"the memory of {self._device} does not suffice", "lower --batch_size or --max_resolution"
                ) from None
        self._outcome.failed.update((path, error.message) for path, error in unreadable.items())

    def _missing(self, chunks: Sequence[Sequence[LatentKey]]) -> list[list[LatentKey]]:
        """What is to be encoded of each chunk, and of the same images flipped; images with all latents are skipped."""
        missing = []
        for chunk in chunks:
            sides = [chunk, [replace(key, flipped=True) for key in chunk]] if self._options.flip_aug else [chunk]
            if self._options.skip_existing:
                sides = [[key for key in side if not has_legacy_npz(key, self._fingerprint)] for side in sides]
            self._unwritten.update(key.path for side in sides for key in side)
            for key in chunk:
                if not self._unwritten[key.path]:
                    self._note(key)
                    self._outcome.skipped[HAS_LATENTS] += 1
            missing += [list(side) for side in sides if side]
        return missing

    def _encode(self, pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        return encode_latents(self._encoder, pixels, keys, self._options.batch_size, self._device)

    def _write(self, latents: Mapping[LatentKey, CachedLatents]) -> None:
        write_legacy_npz(latents, self._fingerprint)
        for key in latents:
            self._unwritten[key.path] -= 1
            if not self._unwritten[key.path]:
                self._note(key)
                self._outcome.done += 1

    def _note(self, key: LatentKey) -> None:
        """The latents of an image are there."""
        name, bucket = self._names[key.path], key.placement.bucket
        self._outcome.results[name] = list(bucket)
        if self._options.debug:
            logger.info("%s: %s, %s in bucket %s", name, key.path, size_text(key.image_size), size_text(bucket))


def write_resolutions(options: PrepareOptions, outcome: Outcome) -> None:
    """Writes the metadata file with the `train_resolution` of the images that have latents."""
    if not outcome.results:
        return
    entries = read_metadata(options.source, "IN_JSON")
    for name, resolution in outcome.results.items():
        entries[name]["train_resolution"] = resolution
    write_metadata(options.target, entries)
    lacking = sum(entry.get("train_resolution") is None for entry in entries.values())
    if lacking:
        logger.warning(
            "%s: %s no latents: fine_tune.py uses prepared latents only where all images have them",
            options.target, plural(lacking, "entry has", "entries have"),
        )  # fmt: skip
