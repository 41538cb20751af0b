"""Prompts as what a run learns from; implements `RunData`. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from library.cli.checks import Findings
from library.cli.errors import plural
from library.cli.parser import Options
from library.data.randomness import keyed_random
from library.data.records import MicroBatch, Size, size_text
from library.methods.concepts.entries import ConceptEntry
from library.methods.concepts.options import ConceptOptions
from library.methods.concepts.prompts_file import FLAG, read_prompts_file
from library.models.family import ModelFamily
from library.run_report.record import Group
from library.training.context import Context
from library.training.inputs.run_data import Inputs, LargestBatch
from library.training.step_plan import StepPlan

if TYPE_CHECKING:
    from accelerate import Accelerator

    from library.training.method import TrainingMethod

EPOCH_LENGTH = 100  # micro-batches: prompts alone have no length, and curves and saves by epoch want one
USUAL_SIZE = (512, 512)  # of families that name none
_MOST_SHOWN = 8


def read_concepts(context: Context) -> ConceptData:
    """What the prompts file of a run describes. Raises `UserError` for all that is wrong in it."""
    options = context[ConceptOptions]
    usual = (None if context.family is None else context.family.latents.usual_resolution) or USUAL_SIZE
    entries = read_prompts_file(str(options.prompts_file), resolution=usual[0])
    return ConceptData(context.options, entries)


@dataclass(frozen=True)
class ConceptBatch:
    """One micro-batch: an entry with what is drawn of it. Implements `LoadedBatch`."""

    SOURCES: ClassVar[str] = "prompts"

    micro_batch: MicroBatch
    entry: ConceptEntry
    num_denoised: int  # timesteps that the target is denoised, from 1 on
    size: Size

    @property
    def num_images(self) -> int:
        return self.entry.batch_size

    @property
    def sources(self) -> list[str]:
        return [self.entry.target]


def draw_batch(entries: Sequence[ConceptEntry], micro_batch: MicroBatch, seed: int, max_steps: int) -> ConceptBatch:
    """The batch of a micro-batch, a function of (seed, epoch, index) alone.

    Entry, then the number of denoised timesteps from 1 to `max_steps` - 1, then the size are drawn, all uniformly.
    """
    rng = keyed_random("concept", seed, micro_batch.epoch, micro_batch.index)
    entry = entries[rng.randrange(len(entries))]
    num_denoised = rng.randrange(1, max_steps)
    return ConceptBatch(micro_batch, entry, num_denoised, entry.draw_size(rng))


class ConceptLoader:
    """Draws the batches of an epoch; implements `Loader`."""

    def __init__(self, entries: Sequence[ConceptEntry], seed: int, max_steps: int):
        self._entries, self._seed, self._max_steps = entries, seed, max_steps

    def batches(self, micro_batches: Sequence[MicroBatch]) -> Iterator[ConceptBatch]:
        for micro_batch in micro_batches:
            yield draw_batch(self._entries, micro_batch, self._seed, self._max_steps)


class ConceptData:
    """The entries of a run."""

    images: ClassVar[None] = None

    def __init__(self, options: Options, entries: Sequence[ConceptEntry]):
        self._options = options
        self.entries = tuple(entries)

    @property
    def num_micro_batches(self) -> int:
        return EPOCH_LENGTH

    @property
    def resolution(self) -> Size:
        largest = max(entry.resolution for entry in self.entries)
        return largest, largest

    @property
    def largest_batch(self) -> LargestBatch:
        """Of the gradients: what is denoised before has no more activations than one layer at a time."""
        entry = max(self.entries, key=lambda entry: entry.batch_size * entry.resolution**2)
        return LargestBatch(entry.batch_size, entry.resolution, entry.resolution, num_encoded=0, encodes_text=False)

    def batches_of_epoch(self, seed: int, epoch: int) -> Sequence[MicroBatch]:
        return [MicroBatch(epoch, index, 0, (), index) for index in range(EPOCH_LENGTH)]

    def digest(self) -> str:
        return hashlib.blake2b(repr(self.entries).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def paths(self) -> list[str]:
        return []

    def plan_lines(self, plan: StepPlan) -> Iterator[str]:
        for entry in self.entries[:_MOST_SHOWN]:
            yield f"learns to {entry.description}"
        if len(self.entries) > _MOST_SHOWN:
            yield f"and {plural(len(self.entries) - _MOST_SHOWN, 'more entry', 'more entries')}"
        yield f"{EPOCH_LENGTH} draws of {plural(len(self.entries), 'entry', 'entries')} / {plan.arithmetic}"

    def facts(self) -> Iterator[Group]:
        name = Path(str(self._options[ConceptOptions].prompts_file)).name
        rows = [
            (entry.description, f"{size_text((entry.resolution, entry.resolution))}, batch size {entry.batch_size}")
            for entry in self.entries[:_MOST_SHOWN]
        ]
        yield Group("Prompts", [(FLAG, f"{name}, {plural(len(self.entries), 'entry', 'entries')}"), *rows])

    def metadata(self, group_size: int) -> dict[str, Any]:
        return {
            "ss_num_train_images": 0,
            "ss_num_reg_images": 0,
            "ss_prompts": json.dumps([asdict(entry) for entry in self.entries]),
        }

    def findings(self, family: ModelFamily) -> Findings:
        """None: prompts are encoded whole."""
        return ()

    def make_inputs(
        self, method: TrainingMethod, family: ModelFamily, accelerator: Accelerator, plan: StepPlan
    ) -> Inputs:
        """Encodes the prompts."""
        from library.methods.concepts.method import ConceptTraining
        from library.methods.concepts.objective import make_objective

        assert isinstance(method, ConceptTraining)  # of the same script
        objective = make_objective(self._options, self.entries, method, family, accelerator)
        return Inputs(
            objective, ConceptLoader(self.entries, plan.seed, self._options[ConceptOptions].max_denoising_steps)
        )
