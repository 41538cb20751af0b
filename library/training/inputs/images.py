"""Images with captions as what a run learns from; implements `RunData`. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from library.cli.checks import Findings
from library.cli.errors import plural
from library.cli.parser import Options
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.records import MicroBatch, Size, size_text
from library.models.family import ModelFamily
from library.models.options import PromptOptions
from library.run_report.record import Group
from library.training.inputs.dataset_metadata import dataset_entries
from library.training.inputs.run_data import HeldOut, Inputs, LargestBatch
from library.training.step_plan import StepPlan

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.training.method import TrainingMethod


class ImageData:
    """The images and captions of a run, with the options that say how they are cached and loaded."""

    def __init__(self, options: Options, images: TrainingData):
        self._options = options
        self.images = images

    @property
    def num_micro_batches(self) -> int:
        return self.images.num_micro_batches

    @property
    def resolution(self) -> Size:
        return self.images.datasets[0].config.resolution

    @property
    def largest_batch(self) -> LargestBatch:
        """That with the most pixels."""
        caching = self._options[CachingOptions]
        batches = (
            (min(dataset.config.batch_size, len(bucket.item_indices)), *bucket.resolution)
            for dataset in self.images.datasets
            for bucket in dataset.buckets
        )
        num_images, width, height = max(batches, key=math.prod)
        num_encoded = caching.vae_batch_size if caching.caches_latents else num_images
        return LargestBatch(num_images, width, height, num_encoded, not caching.caches_text_encoder_outputs)

    def batches_of_epoch(self, seed: int, epoch: int) -> Sequence[MicroBatch]:
        return self.images.batches_of_epoch(seed, epoch)

    def digest(self) -> str:
        return self.images.digest()

    def paths(self) -> list[str]:
        return [key.path for key in self.images.latent_keys()]

    def plan_lines(self, plan: StepPlan) -> Iterator[str]:
        yield from self.images.bucket_table()
        yield _arithmetic(self.images, plan)

    def facts(self) -> Iterator[Group]:
        datasets, validation = self.images.datasets, self.images.validation
        for number, dataset in enumerate(datasets, start=1):
            yield Group(f"Dataset {number}" if len(datasets) > 1 else "Dataset", list(_dataset_rows(dataset)))
        if validation is not None:
            yield Group("Validation", [("held out", plural(validation.num_items, "image"))])

    def metadata(self, group_size: int) -> dict[str, Any]:
        images, flags = self.images, self._options[DatasetOptions]
        return {
            **dataset_entries(images, flags, group_size),
            "ss_cache_latents": self._options[CachingOptions].caches_latents,
            "ss_num_train_images": images.num_train_images,
            "ss_num_reg_images": images.num_reg_images,
            "ss_num_validation_images": 0 if images.validation is None else images.validation.num_items,
            "ss_validation_split": flags.validation_split,
            "ss_validation_seed": flags.validation_seed,
        }

    def findings(self, family: ModelFamily) -> Findings:
        """Captions that are too long; it is known now how many tokens an embedding has."""
        from library.training.inputs.text_outputs import caption_findings

        yield from caption_findings(self.images, family, self._options[PromptOptions].max_token_length)

    def make_inputs(
        self, method: TrainingMethod, family: ModelFamily, accelerator: Accelerator, plan: StepPlan
    ) -> Inputs:
        """Fills the caches of latents and text encoder outputs."""
        from library.training.inputs.objective import make_inputs

        inputs, validation = (
            make_inputs(self._options, self.images, method, family, accelerator),
            self.images.validation,
        )
        held_out = None if validation is None else HeldOut(validation, inputs)
        return Inputs(inputs.objective, inputs.loader_of(self.images, plan.seed, plan.clock), held_out)


def _arithmetic(data: TrainingData, plan: StepPlan) -> str:
    num_images = sum(len(dataset.used_record_indices) for dataset in data.datasets)
    num_buckets = sum(len(dataset.buckets) for dataset in data.datasets)
    sizes = " and ".join(str(size) for size in sorted({dataset.config.batch_size for dataset in data.datasets}))
    return (
        f"{plural(num_images, 'image')} x repeats = {data.num_items} / batch {sizes}"
        f" = {plural(plan.num_micro_batches, 'batch', 'batches')} (in {plural(num_buckets, 'bucket')})"
        f" / {plan.arithmetic}"
    )


def _dataset_rows(dataset: PlannedDataset) -> Iterator[tuple[str, str]]:
    config = dataset.config
    counts = f"{plural(len(dataset.used_record_indices), 'image')}, with repeats {len(dataset.items):,}"
    yield "images", counts
    yield "resolution", f"{size_text(config.resolution)}, in {plural(len(dataset.buckets), 'bucket')}"
    yield "batch size", str(config.batch_size)
    if dataset.num_skipped:
        yield "skipped", f"{plural(dataset.num_skipped, 'image')}, by --skip_image_resolution"
    for summary in dataset.subset_summaries:
        subset = summary.config
        is_reg = ", regularisation" if subset.is_reg else ""
        yield subset.source_name, f"{plural(summary.img_count, 'image')} x {subset.num_repeats}{is_reg}"
