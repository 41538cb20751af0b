"""What a training script is, and what the checks of a run look at. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from library.cli.checks import Check, read_once
from library.cli.errors import UserError
from library.cli.logging import Message, kept_warnings
from library.cli.options import OptionGroup
from library.cli.parser import Options
from library.data.config.config import Source
from library.data.config.options import CachingOptions, DatasetOptions, InpaintingOptions
from library.data.records import LatentFormat
from library.dataset_report.options import ReportOptions
from library.models.families import FamilyEntry, family_named
from library.models.options import ModelOptions
from library.models.registry import FoundModel, detect_model
from library.training.checkpoints.hub_upload import read_hub_state
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.resuming import AUTO, FoundState, newest_state, read_whole_state
from library.training.distributed.options import ProcessOptions
from library.training.distributed.sharding_config import ShardingConfig, sharding_config
from library.training.evaluation.options import SampleOptions
from library.training.evaluation.prompt_files import read_prompt_file
from library.training.evaluation.prompts import SamplePrompt

if TYPE_CHECKING:
    from library.data.batches.plan import TrainingData
    from library.training.inputs.run_data import RunData
    from library.training.method import TrainingMethod

logger = logging.getLogger(__name__)

T = TypeVar("T")


class MethodOptions(Protocol):
    """What the options of a method say, beside what only the method reads."""

    HOW_TO_FREEZE: ClassVar[str]  # what freezes the text encoder, for messages; empty where nothing does

    @property
    def trains_text_encoder(self) -> bool:
        """Whether gradients flow through the text encoder."""

    def learning_rates(self, default: float) -> dict[str, float]:
        """The rate of each part that is trained, by the option that sets it. `default`: `--learning_rate`."""


def read_images(context: Context) -> RunData:
    """The images and captions that the dataset options describe, in buckets."""
    from library.data.load_data import load_training_data  # NumPy and Pillow are not for --help
    from library.training.inputs.images import ImageData

    script, described = context.script, context[DatasetOptions]
    if not context.trains:  # bad images are what the user wants to see
        described = replace(described, skip_bad_images=True)
    caching = context.options.get(CachingOptions)
    latents = LatentFormat() if context.family is None else context.family.latents
    images = load_training_data(described, caching, only=script.data_source, latents=latents)
    if script.adapt_data is not None:
        images = script.adapt_data(context.options, images)
    return ImageData(context.options, images)


@dataclass(frozen=True)
class TrainingScript:
    """What is a script's own.

    `method_options`: the group of `option_groups` that says what is trained. `make_method` is called when the options
    are valid, and may import what is heavy only then. `checks`: beside those of `preflight`. `read_data`: reads what is
    learnt from. `data_source`: what must describe all images, folders or metadata files; None for either. `ending_of`:
    of the files of a run; empty for folders. `adapt_data`: gives the images as the method wants them, and raises
    `UserError` for images that it cannot use.
    `can_be_sharded`: whether what is trained is large enough to be sharded over the processes. `can_be_widened`:
    whether the U-Net's first layer is trained, so that a model that takes no mask can become one that does.
    `usual_learning_rate`: where the default is far too low. `tracker_project`: where the user names none, as other
    programs name it.
    `family`: the package of the only model family that it trains; None for all.
    """

    program: str
    description: str
    option_groups: tuple[type[OptionGroup], ...]
    method_options: type[MethodOptions]
    make_method: Callable[[Options], TrainingMethod]
    checks: tuple[Check[Context], ...] = ()
    read_data: Callable[[Context], RunData] = read_images
    data_source: Source | None = None
    ending_of: Callable[[Options], str] = lambda options: ".safetensors"
    adapt_data: Callable[[Options, TrainingData], TrainingData] | None = None
    can_be_sharded: bool = False
    can_be_widened: bool = False
    usual_learning_rate: float | None = None
    tracker_project: str = "training"
    family: str | None = None

    @property
    def offers_datasets(self) -> bool:
        """Whether it learns from images."""
        return DatasetOptions in self.option_groups


class Context:
    """What checks look at: the options, and what these name. Each is read once, by the first check that needs it.

    The run uses what was read. Where something cannot be read, the first check that asks reports the error, and the
    others are skipped.
    """

    def __init__(self, script: TrainingScript, options: Options):
        self.script = script
        self.options = options

    def __getitem__(self, owner: type[T]) -> T:
        """A group of options."""
        return self.options[owner]

    @property
    def method_options(self) -> Any:
        """The group that says what is trained."""
        return self.options[self.script.method_options]

    @property
    def trains(self) -> bool:
        """Whether a model is going to be trained; otherwise the data is shown (`--debug_dataset`)."""
        return not (self.script.offers_datasets and self[ReportOptions].replaces_training)

    @read_once
    def model(self) -> FoundModel | None:
        """The model, detected from its small files; None where it is known only when it is loaded."""
        return detect_model(self[ModelOptions], asks_hub=True) if self.trains else None

    @property
    def family(self) -> FamilyEntry | None:
        """The family of the model: that of the script, or the detected one; None where neither says it."""
        if self.script.family is not None:
            return family_named(self.script.family)
        return None if self.model is None else self.model.family

    @property
    def inpaints(self) -> bool:
        """Whether an inpainting model is trained, as far as it is known before the model is loaded.

        Also where the data is shown alone; what is wrong with the model does not matter then.
        """
        model = self.model
        if not self.trains:
            with contextlib.suppress(UserError):
                model = detect_model(self[ModelOptions])
        is_found = model is not None and model.detected.is_inpainting
        options = self.options.get(InpaintingOptions)
        return is_found or (options is not None and options.train_inpainting)

    @read_once
    def requested_sharding(self) -> ShardingConfig | None:
        """The sharding that options or accelerate's variables ask for, whatever is trained."""
        return sharding_config(self[ProcessOptions], os.environ) if self.trains else None

    @property
    def sharding(self) -> ShardingConfig | None:
        """How trained parameters are sharded; None where every process holds a copy."""
        return self.requested_sharding if self.script.can_be_sharded else None

    @read_once
    def prompts(self) -> list[SamplePrompt]:
        """The prompts of sample images; none where no images are generated."""
        samples = self[SampleOptions]
        if samples.sample_prompts is None or not samples.draws_during_training:
            return []
        return read_prompt_file(samples.sample_prompts)

    @read_once
    def state(self) -> FoundState | None:
        """The state to resume from."""
        output, hub = self[OutputOptions], self[HubOptions]
        if output.resume is None:
            return None
        if hub.resume_from_huggingface:
            return read_hub_state(output.resume, hub.huggingface_token)
        if output.resume != AUTO:
            return read_whole_state(output.resume)
        found = newest_state(output.output_dir or ".", output.output_name)
        what = "a new run, as there is no state" if found is None else f"resuming from {found.folder}"
        logger.info("--resume auto: %s", what)
        return found

    @read_once
    def data_and_warnings(self) -> tuple[RunData, tuple[Message, ...]]:
        """What the run learns from, and what was logged while it was read."""
        with kept_warnings() as warnings:
            data = self.script.read_data(self)
        return data, tuple(warnings)

    @property
    def data(self) -> RunData:
        return self.data_and_warnings[0]

    @property
    def images(self) -> TrainingData:
        """Of a script that learns from images."""
        images = self.data.images
        assert images is not None
        return images

    @property
    def sample_folder(self) -> Path:
        return Path(self[OutputOptions].output_dir or ".") / "sample"
