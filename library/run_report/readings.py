"""What the curves of a run say, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, variance

from library.cli.errors import plural
from library.run_report.record import Points, RunRecord, Save

LOSS, SMOOTHED, VALIDATION = "loss", "smoothed loss", "validation loss"  # the curves that every run has, or may have
_RISE = 0.02  # of the validation loss over its lowest value, from which on it is said


@dataclass(frozen=True)
class Reading:
    """One sentence; `is_bad` where it asks for action."""

    text: str
    is_bad: bool = False


def lowest(points: Points) -> tuple[int, float] | None:
    return min(points, key=lambda point: point[1], default=None)


def last(points: Points) -> float | None:
    return points[-1][1] if points else None


def nearest_save(record: RunRecord, step: int) -> Save | None:
    """The checkpoint on disk that is nearest to a step; of equally near ones the first."""
    there = {each.name.split("/")[0] for each in record.files}
    saves = [save for save in record.saves if save.name in there and not save.name.endswith("-state")]
    return min(saves, key=lambda save: abs(save.step - step), default=None)


def readings(record: RunRecord) -> list[Reading]:
    """From what asks for action to what is well."""
    return sorted([*_skipped(record), *_validation(record), *_loss(record)], key=lambda each: not each.is_bad)


def _skipped(record: RunRecord) -> Iterator[Reading]:
    if record.num_skipped:
        number = plural(record.num_skipped, "step")
        text = f"{number} of {record.step:,} could not be applied: the loss or the gradients were not finite."
        yield Reading(text, is_bad=record.num_skipped * 100 > record.step)


def _validation(record: RunRecord) -> Iterator[Reading]:
    points = record.curves.get(VALIDATION, [])
    best, now = lowest(points), last(points)
    if best is None or now is None or len(points) < 2:
        return
    if now <= best[1] * (1 + _RISE):
        text = f"The validation loss is at its lowest, or near it: {now:.4g}, after {best[1]:.4g} at step {best[0]:,}."
        yield Reading(text)
        return
    save = nearest_save(record, best[0])
    text = f"The validation loss has risen since step {best[0]:,}, from {best[1]:.4g} to {now:.4g}: "
    text += "what was learned after that step may be the training images by heart."
    if save is not None and save.step < points[-1][0]:
        text += f" The checkpoint nearest to it is {save.name}."
    yield Reading(text, is_bad=True)


def _loss(record: RunRecord) -> Iterator[Reading]:
    """Compares the mean losses of the first and last third; noise and timesteps make those of single steps jump."""
    points = record.curves.get(LOSS, [])
    third = len(points) // 3
    if third < 20:
        return
    first, late = ([value for _, value in part] for part in (points[:third], points[-third:]))
    start, end = fmean(first), fmean(late)
    error = math.sqrt((variance(first) + variance(late)) / third)
    if abs(end - start) < 2 * error:
        yield Reading(
            f"The loss of the first and of the last third are the same within the scatter of the steps: {start:.4g},"
            f" then {end:.4g}. The validation loss and the samples tell more."
        )
    elif start > 0:
        what = "fell by" if end < start else "rose by"
        text = f"The mean loss {what} {abs(end / start - 1):.0%} from the first third of the run to the last: "
        yield Reading(f"{text}{start:.4g}, then {end:.4g}.", is_bad=end > start * 1.5)
