"""What ends a run before its end, other than a signal: weights and state of the last whole step are saved first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from library.cli.errors import LostProcess, Stopped, first_line
from library.training.distributed.processes import tells_of_loss
from library.training.loop.outputs import Outputs
from library.training.loop.step import Step
from library.training.step_plan import Position

logger = logging.getLogger(__name__)


@dataclass
class Whereabouts:
    """Where a run is: after `position`, or within the step to `next_position`, or already behind that one."""

    position: Position
    next_position: Position
    is_saved: bool = False  # what can be saved is: the run ends

    def last_whole(self, whole_step: int | None) -> Position | None:
        """The position after the `whole_step` that the weights have; None where they are within an update."""
        both = (self.position, self.next_position)
        return next((each for each in both if each.global_step == whole_step), None)


@contextmanager
def saved_whatever_happens(step: Step, outputs: Outputs, start: Position) -> Iterator[Whereabouts]:
    """Within it an exception at any line saves the last whole step before it goes on, where a step was made.

    Raises `Stopped` instead of an error that came with a signal to the processes of the run.
    """
    at = Whereabouts(start, start)
    try:
        yield at
    except BaseException as error:
        if at.is_saved:
            raise
        position = at.last_whole(step.whole_step)
        is_new = position is None or position.global_step > start.global_step
        state = _save(step, outputs, position, error) if is_new else None
        signal_number = step.stop_request.signal_number
        if signal_number and isinstance(error, Exception):
            logger.warning("%s", first_line(error))
            raise Stopped(signal_number, state) from error
        raise


def _save(step: Step, outputs: Outputs, position: Position | None, error: BaseException) -> str | None:
    """Saves and says so; the state's folder, if there is one. Raises nothing: `error` is what ends the run."""
    last_save = "only what was saved before is there (--resume auto goes on from the last state)"
    if position is None:
        logger.warning("the run ends within the update of the weights, which are not saved: %s", last_save)
        return None
    if not outputs.can_save_alone:
        logger.warning("the run ends, and a process alone cannot save sharded weights: %s", last_save)
        return None
    is_lost = isinstance(error, LostProcess) or tells_of_loss(error)
    return outputs.save_on_failure(position, is_agreed=step.failure is not None, is_another_lost=is_lost)
