"""The third seam: what a run learns from. Images with captions are one kind; the loop knows all by this protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from library.cli.checks import Findings
from library.data.records import MicroBatch, Size
from library.models.family import ModelFamily
from library.run_report.record import Group
from library.training.step_plan import StepPlan

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from library.data.batches.plan import TrainingData
    from library.training.inputs.objective import ImageInputs
    from library.training.method import TrainingMethod


class LoadedBatch(Protocol):
    """A micro-batch with what its loss is computed from."""

    micro_batch: MicroBatch
    SOURCES: ClassVar[str]  # what `sources` are, for messages: "images"

    @property
    def num_images(self) -> int: ...

    @property
    def sources(self) -> list[str]:
        """Names of what the batch is made of, for a step that fails."""


class Loader(Protocol):
    def batches(self, micro_batches: Sequence[MicroBatch]) -> Iterator[Any]:
        """The batch of each micro-batch, in order. Raises `UserError` for what cannot be loaded."""


class Objective(Protocol):
    """What training makes small."""

    def training_loss(self, batch: Any, seed: int) -> torch.Tensor:
        """The loss of one micro-batch, a scalar. Its randomness is a function of (seed, epoch, index in the plan)."""

    def after_backward(self) -> None:
        """Sets back what `training_loss` has set for the backward pass too, in which activations are recomputed."""


@dataclass(frozen=True)
class Inputs:
    """The way from a micro-batch to its loss. `held_out`: that of images held out for validation, if there are any."""

    objective: Objective
    loader: Loader
    held_out: HeldOut | None = None


@dataclass(frozen=True)
class HeldOut:
    """Images held out for validation, and the way from them to their loss."""

    images: TrainingData
    inputs: ImageInputs


@dataclass(frozen=True)
class LargestBatch:
    """The micro-batch that takes the most memory.

    `num_encoded`: images that the VAE encodes at once. `encodes_text`: the text encoder runs in each step.
    """

    num_images: int
    width: int
    height: int
    num_encoded: int
    encodes_text: bool


class RunData(Protocol):
    """What a run learns from, known before a model is loaded."""

    @property
    def images(self) -> TrainingData | None:
        """Images with captions; None where a run learns from something else."""

    @property
    def num_micro_batches(self) -> int:
        """Per epoch, the same in every epoch."""

    @property
    def resolution(self) -> Size | None:
        """For metadata; None where the model's own is used."""

    @property
    def largest_batch(self) -> LargestBatch: ...

    def batches_of_epoch(self, seed: int, epoch: int) -> Sequence[MicroBatch]:
        """The micro-batches of an epoch in order: a function of the data, the seed and the epoch alone."""

    def digest(self) -> str:
        """Equal digests mean that the same is learnt, in whatever folders it is."""

    def paths(self) -> list[str]:
        """Of files that all processes read under the same paths."""

    def plan_lines(self, plan: StepPlan) -> Iterator[str]:
        """What is learnt in how many steps, for the first lines of the log."""

    def facts(self) -> Iterator[Group]:
        """The same for the run's page."""

    def metadata(self, group_size: int) -> dict[str, Any]:
        """The `ss_*` entries of saved files; tables are not yet JSON text. `group_size`: micro-batches in a step."""

    def findings(self, family: ModelFamily) -> Findings:
        """What does not fit the loaded model, to which the method is attached."""

    def make_inputs(
        self, method: TrainingMethod, family: ModelFamily, accelerator: Accelerator, plan: StepPlan
    ) -> Inputs:
        """Computes what is computed once, before the first step, and makes the inputs of all steps."""
