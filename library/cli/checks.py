"""One kind of check: a function of a context that yields errors and warnings, registered once with its stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from library.cli.errors import UserError, UserErrors, raise_together

logger = logging.getLogger(__name__)

Findings = Iterable[UserError | str]  # what a check yields: errors, and warnings as text
Stage = Literal["options", "data", "device", "model"]

ContextT = TypeVar("ContextT")
T = TypeVar("T")


class Unavailable(Exception):
    """Raised in a check by a context: what it reads is invalid, which is reported already. The check is skipped."""


@dataclass(frozen=True)
class Check(Generic[ContextT]):
    """`find` yields what is wrong, or raises `UserError`. `stage`: when everything that it reads is known.

    `options`: options and small files (configurations, headers), without torch. `data`: images and captions, without
    torch. `device`: the accelerator and the number of processes. `model`: the loaded model.
    """

    stage: Stage
    find: Callable[[ContextT], Findings]


def find_errors(checks: Iterable[Check[ContextT]], stage: Stage, context: ContextT) -> list[UserError]:
    """The errors that the checks of a stage find, in their order; their warnings are logged."""
    chosen = [check for check in checks if check.stage == stage]
    return [error for check in chosen for error in errors_of(partial(check.find, context))]


def run_checks(checks: Iterable[Check[ContextT]], stage: Stage, context: ContextT) -> None:
    """Raises the errors that the checks of a stage find as one `UserError`; their warnings are logged."""
    raise_together(find_errors(checks, stage, context))


def report(findings: Findings) -> None:
    """Logs the warnings, and raises the errors as one `UserError`."""
    raise_together(errors_of(lambda: findings))


def errors_of(find: Callable[[], Findings]) -> Iterator[UserError]:
    """The errors that one check yields or raises; its warnings are logged."""
    try:
        for found in find():
            if isinstance(found, UserError):
                yield found
            else:
                logger.warning("%s", found)
    except Unavailable:
        pass
    except UserErrors as errors:
        yield from errors.errors
    except UserError as error:
        yield error


class read_once(Generic[T]):  # noqa: N801 - used as a decorator, like functools.cached_property
    """A property of a context that is read when a check first asks for it.

    A `UserError` in reading is raised once; afterwards the property is `Unavailable`.
    """

    def __init__(self, read: Callable[[Any], T]):
        self._read = read
        self._name = read.__name__
        self.__doc__ = read.__doc__

    def __get__(self, context: Any, owner: type | None = None) -> T:
        if context is None:
            return self  # type: ignore[return-value]
        failed = context.__dict__.setdefault("_failed", set())
        if self._name in failed:
            raise Unavailable
        try:
            value = self._read(context)
        except UserError:
            failed.add(self._name)
            raise
        context.__dict__[self._name] = value  # found there from now on, as it comes before this descriptor
        return value
