"""Conditioning of a batch: from the text encoder, or from its cached outputs; and filling that cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from library.cli.checks import Findings
from library.cli.errors import plural
from library.cli.logging import progress_bar
from library.data.batches.plan import TrainingData
from library.data.caches.cache_names import text_cache_path
from library.data.caches.npz_files import remove_leftovers
from library.data.caches.shard_files import ShardFiles
from library.data.caches.shard_text import missing_captions, read_caption, shard_text_path, write_captions
from library.data.caches.text_cache import TextOutputs, read_text_outputs, write_text_outputs
from library.data.captions import final_caption, with_whole_captions
from library.data.config.config import SubsetConfig
from library.data.config.options import CachingOptions
from library.data.randomness import keyed_random
from library.data.records import Batch, ImageRecord, LatentKey
from library.models.conditioning import Conditioning
from library.models.family import ModelFamily
from library.training.distributed.processes import file_shares

logger = logging.getLogger(__name__)

_ENCODING = ("utf-8", "surrogatepass")
_NUM_EXAMPLES = 3
_EXAMPLE_LENGTH = 60


class TextSource:
    """Provides the conditioning of batches, and fills the cache of text-encoder outputs before training."""

    def __init__(self, family: ModelFamily, options: CachingOptions, accelerator: Accelerator, trains: bool):
        """`trains`: whether gradients flow into the text encoder."""
        self._family = family
        self._options = options
        self._accelerator = accelerator
        self._trains = trains
        self._in_memory: dict[str, TextOutputs] = {}  # by caption
        self._shard_files = ShardFiles()

    def fill_cache(self, data: TrainingData) -> None:
        """Encodes the captions that are not cached yet; does nothing unless outputs are cached."""
        if self._options.cache_text_encoder_outputs_to_disk:
            self._fill_files(data)
        elif self._options.caches_text_encoder_outputs:
            captions = sorted({caption for each in fixed_captions(data).values() for caption in each})
            with self._progress(len(captions)) as progress:
                for caption in captions:
                    self._in_memory[caption] = self._encode_one(caption)
                    progress.update(1)

    def _fill_files(self, data: TrainingData) -> None:
        """Writes the files, one process for each; they are read again in training."""
        of_files, of_shards = (self._captions_by_file(data, in_shards=each) for each in (False, True))
        for rank, num_processes in file_shares(self._accelerator):
            self._fill_share(of_files, rank, num_processes)
            self._fill_share_of_shards(of_shards, rank, num_processes)

    def _captions_by_file(self, data: TrainingData, *, in_shards: bool) -> dict[Path, tuple[str, ...]]:
        captions: dict[Path, dict[str, None]] = {}
        for record, caption in _records_with_captions(data):
            if (record.member is not None) == in_shards:
                captions.setdefault(self._path_of(record), {})[caption] = None
        return {path: tuple(each) for path, each in captions.items()}

    def _path_of(self, image: ImageRecord | LatentKey) -> Path:
        if image.member is None:
            return text_cache_path(image.path, self._family.caches)
        return shard_text_path(image.member.shard, self._family.caches)

    def _fill_share_of_shards(self, captions: Mapping[Path, Sequence[str]], rank: int, num_processes: int) -> None:
        encoder = self._family.text_fingerprint()
        mine = {path: captions[path] for path in sorted(captions)[rank::num_processes]}
        missing = {path: missing_captions(path, each, encoder, self._names) for path, each in mine.items()}
        self._accelerator.wait_for_everyone()
        with self._progress(sum(map(len, missing.values()))) as progress:
            for path, lacking in missing.items():
                if lacking:
                    kept = set(captions[path]) - set(lacking)
                    write_captions(path, self._encoded(lacking, progress), kept, encoder)
        self._accelerator.wait_for_everyone()

    def _encoded(self, captions: Sequence[str], progress: Any) -> Iterator[tuple[str, TextOutputs]]:
        for caption in captions:
            yield caption, self._encode_one(caption)
            progress.update(1)

    def _fill_share(self, captions: Mapping[Path, Sequence[str]], rank: int, num_processes: int) -> None:
        encoder = self._family.text_fingerprint()
        mine = sorted(captions)[rank::num_processes]
        missing = [path for path in mine if len(self._read(path, captions[path], encoder)) < len(captions[path])]
        self._accelerator.wait_for_everyone()
        if rank == 0:
            for folder in sorted({str(path.parent) for path in captions}):
                remove_leftovers(folder)
        with self._progress(len(missing)) as progress:
            for path in missing:
                outputs = {caption: self._encode_one(caption) for caption in captions[path]}
                write_text_outputs(path, outputs, encoder, numbers_first=not self._family.caches.text_by_stem)
                progress.update(1)
        self._accelerator.wait_for_everyone()

    def _read(self, path: Path, captions: Sequence[str], encoder: str) -> dict[str, TextOutputs]:
        return read_text_outputs(path, captions, encoder, self._names)

    @property
    def _names(self) -> list[str]:
        return [field.name for field in fields(self._family.conditioning)]

    def _progress(self, total: int) -> Any:
        return progress_bar(total, "caching captions", is_quiet=not total or not self._accelerator.is_main_process)

    def conditioning_of(self, batch: Batch) -> Conditioning:
        """The conditioning of a batch's captions, on the device."""
        if not self._options.caches_text_encoder_outputs:
            with torch.set_grad_enabled(self._trains and torch.is_grad_enabled()):
                return self._family.encode_prompts(batch.captions)
        outputs = [self._cached(*each) for each in zip(batch.captions, batch.latent_keys, strict=True)]
        return self._family.conditioning.from_arrays(outputs, self._accelerator.device)

    def _cached(self, caption: str, image: LatentKey) -> TextOutputs:
        if caption in self._in_memory:
            return self._in_memory[caption]
        if not caption:  # dropped by caption dropout; the same for all images
            self._in_memory[""] = self._encode_one("")
            return self._in_memory[""]
        path, encoder = self._path_of(image), self._family.text_fingerprint()
        if image.member is None:
            found = self._read(path, [caption], encoder).get(caption)
        else:
            found = read_caption(self._shard_files, path, caption, encoder, self._names)
        if found is not None:
            return found
        logger.warning("the cached caption of %s was removed or changed during training: encoded again", image.path)
        self._in_memory[caption] = self._encode_one(caption)
        return self._in_memory[caption]

    def _encode_one(self, caption: str) -> TextOutputs:
        with torch.no_grad(), self._accelerator.autocast():
            return self._family.encode_prompts([caption]).arrays(0)


def fixed_captions(data: TrainingData) -> dict[str, tuple[str, ...]]:
    """The captions of each image, by path: one for each subset that the image is in."""
    captions: dict[str, dict[str, None]] = {}
    for record, caption in _records_with_captions(data):
        captions.setdefault(record.path, {})[caption] = None
    return {path: tuple(each) for path, each in captions.items()}


def _records_with_captions(data: TrainingData) -> Iterator[tuple[ImageRecord, str]]:
    for dataset in data.all_datasets:
        for record in dataset.records:
            yield record, _fixed_caption(record.caption, dataset.subset_of(record))


def _fixed_caption(caption: str, subset: SubsetConfig) -> str:
    always = replace(subset, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0)  # the empty one is cached too
    return final_caption(caption, always, keyed_random("caption"))


def caption_findings(data: TrainingData, family: ModelFamily, limit: int) -> Findings:
    """Captions that are longer than the token limit."""
    # a token is a byte or more: shorter captions cannot be too long
    captions = [each for each in dict.fromkeys(_whole_captions(data)) if len(each.encode(*_ENCODING)) > limit]
    lengths = zip(captions, family.count_tokens(captions), strict=True)
    long = [(caption, count) for caption, count in lengths if count > limit]
    if long:
        examples = "; ".join(f"{caption[:_EXAMPLE_LENGTH]!r}... ({count})" for caption, count in long[:_NUM_EXAMPLES])
        yield (
            f"{plural(len(long), 'caption has', 'captions have')} more than {limit} tokens (--max_token_length):"
            f" truncated, {examples} (--debug_dataset shows all)"
        )


def _whole_captions(data: TrainingData) -> Iterator[str]:
    """Each caption with its prefix and suffix, without shuffling or dropout."""
    for dataset in data.datasets:
        whole = [with_whole_captions(subset) for subset in dataset.config.subsets]
        for record in dataset.records:
            rng = keyed_random("caption length", record.caption)
            yield final_caption(record.caption, whole[record.subset_index], rng)
