"""Errors that a user can cause and fix, and lists of names in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_MOST_ERRORS = 100  # that are shown together


class UserError(Exception):
    """An error the user can fix: `message` names what is wrong, `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"

    def __reduce__(self):
        # worker processes send their errors pickled
        return type(self), (self.message, self.hint)


class UserErrors(UserError):
    """Several user errors found together, reported together."""

    def __init__(self, errors: Iterable[UserError]):
        self.errors = tuple(errors)
        super().__init__("\n".join(self.texts()))

    def texts(self) -> list[str]:
        """The errors as text, at most `_MOST_ERRORS` of them, and how many more there are."""
        shown = [str(error) for error in self.errors[:_MOST_ERRORS]]
        rest = len(self.errors) - len(shown)
        return [*shown, plural(rest, "more error")] if rest else shown

    def __reduce__(self):
        return type(self), (self.errors,)


class LostProcess(UserError):
    """Another process of the run has ended: its own error is the cause, not this one."""


class OutOfMemory(UserError):
    """The run does not fit into the memory of the GPU, or of the machine."""


class Stopped(Exception):
    """A signal has stopped the run, which has saved what it could."""

    def __init__(self, signal_number: int, state: str | None, secret_flags: Sequence[str] = ()):
        """state: the state folder to resume from, if any. secret_flags: options whose values are not shown."""
        super().__init__(signal_number, state, secret_flags)
        self.signal_number = signal_number
        self.state = state
        self.secret_flags = secret_flags


def raise_together(errors: Iterable[UserError]) -> None:
    """Raises all of `errors` as one exception; does nothing when there are none."""
    flat: list[UserError] = []
    for error in errors:
        flat.extend(error.errors if isinstance(error, UserErrors) else [error])
    if len(flat) == 1:
        raise flat[0]
    if flat:
        raise UserErrors(flat)


def listed(names: Sequence[str], limit: int) -> str:
    """The first `limit` names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def plural(count: int, one: str, several: str | None = None) -> str:
    """The count with its noun, as in "1 image", "3 images"; `several` where that is not `one` with an s."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its class where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest_name(name: str, valid_names: Iterable[str]) -> str | None:
    """The valid name that `name` is most likely a misspelling of, if any comes close."""
    matches = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=0.6)
    return matches[0] if matches else None
