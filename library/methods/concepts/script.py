"""The script definition that `train_leco.py` and `sdxl_train_leco.py` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.cli.parser import Options
from library.methods.concepts.data import read_concepts
from library.methods.concepts.options import CHECKS, ConceptOptions
from library.training.context import TrainingScript
from library.training.script import option_groups

if TYPE_CHECKING:
    from library.methods.concepts.method import ConceptTraining

OPTION_GROUPS = option_groups(ConceptOptions, learns_from_images=False)


def concept_script(program: str, description: str, family: str | None = None) -> TrainingScript:
    """A script that learns concepts from prompts; `family` as in `TrainingScript`."""
    return TrainingScript(
        program,
        description,
        OPTION_GROUPS,
        ConceptOptions,
        _make_method,
        checks=CHECKS,
        read_data=read_concepts,
        ending_of=lambda options: f".{options[ConceptOptions].save_model_as}",
        usual_learning_rate=1e-4,
        tracker_project="leco_train",
        family=family,
    )


def _make_method(options: Options) -> ConceptTraining:
    from library.methods.concepts.method import ConceptTraining

    return ConceptTraining(options[ConceptOptions])
