"""The script definition that `train_db.py` and `fine_tune.py` share: training method, checks, file ending."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.cli.options import OptionGroup
from library.cli.parser import Options
from library.data.config.config import Source
from library.methods.options import WholeModelOptions
from library.methods.whole_model_checks import CHECKS, chosen_ending, chosen_format
from library.training.context import TrainingScript

if TYPE_CHECKING:
    from library.methods.whole_model import FullFineTuning


def whole_model_script(
    program: str,
    description: str,
    option_groups: tuple[type[OptionGroup], ...],
    data_source: Source | None,
    *,
    tracker_project: str,
    family: str | None = None,
) -> TrainingScript:
    """A full fine-tuning script; its `WholeModelOptions` say how the text encoder is trained."""
    return TrainingScript(
        program,
        description,
        option_groups,
        WholeModelOptions,
        _make_method,
        checks=CHECKS,
        data_source=data_source,
        ending_of=chosen_ending,
        can_be_sharded=True,
        can_be_widened=True,
        tracker_project=tracker_project,
        family=family,
    )


def _make_method(options: Options) -> FullFineTuning:
    from library.methods.whole_model import FullFineTuning

    return FullFineTuning(options[WholeModelOptions], chosen_format(options))
