"""What a stand-alone script has done with each image or file, in words and as an exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SOME_FAILED, NOTHING_DONE = 1, 2  # exit statuses
_MOST_NAMES = 100  # of failures that are shown


@dataclass
class Outcome:
    """Counts of what was done and skipped, and what failed; `results`: what goes into one file of all images."""

    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # why -> how many
    failed: dict[str, str] = field(default_factory=dict)  # name of the image or file -> what is wrong
    results: dict[str, Any] = field(default_factory=dict)  # by image

    @property
    def status(self) -> int:
        """The exit status: 0, 1 where some failed, 2 where nothing could be done."""
        if not self.failed:
            return 0
        return SOME_FAILED if self.done or self.skipped.total() else NOTHING_DONE

    def summary(self, done: str) -> str:
        """One line, such as "12 captioned, 3 skipped (they have a caption), 1 failed"; `done` says what was done."""
        parts = [f"{self.done} {done}"]
        parts += [f"{count} skipped ({reason})" for reason, count in sorted(self.skipped.items()) if count]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return ", ".join(parts)

    def failures(self) -> list[str]:
        """One line for each failure, at most `_MOST_NAMES`, and how many more there are."""
        lines = [reason if name in reason else f"{name}: {reason}" for name, reason in sorted(self.failed.items())]
        rest = len(lines) - _MOST_NAMES
        return lines if rest <= 0 else [*lines[:_MOST_NAMES], f"{rest} more failed"]


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcomes of all processes as one."""
    whole = Outcome()
    for each in outcomes:
        whole.done += each.done
        whole.skipped.update(each.skipped)
        whole.failed.update(each.failed)
        whole.results.update(each.results)
    return whole
