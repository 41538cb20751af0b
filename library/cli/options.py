"""Options declared once: a frozen dataclass per concern becomes flags, help, config keys and checks.

A field is declared with `option(...)`. Its annotation gives the type: `bool` (a flag without value), `int`, `float`,
`str`, `tuple[str, ...]` (a list of values), each possibly `| None`. A dataclass has a `GROUP` class variable, the
title under which its flags stand in `--help`, and may have a method `check()`, which yields a `UserError` for each
contradiction between its fields, and a warning for each value that has no effect with the others.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, Protocol

FREE_TEXT = "TEXT"  # the metavar of options that take any text, "none" too
_NONE = ("none", "null")  # texts that mean "no value"
_PATHS = ("FILE", "FOLDER", "PATH")  # the metavars of options that take a path
_LONGEST_NAME = 255  # bytes of a file's or folder's name, on all usual file systems


class OptionGroup(Protocol):
    """A dataclass of options; its method `check` is optional."""

    GROUP: ClassVar[str]


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """The specification of one option, apart from its name, type and default."""

    help: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    aliases: tuple[str, ...] = ()
    metavar: str | None = None
    required: bool = False
    parse: Callable[[Any], Any] | None = None
    toml_level: str | None = None
    toml_key: str | None = None
    waives: tuple[str, ...] = ()
    positional: bool = False
    secret: bool = False
    takes_first: bool = False
    variable: str | None = None
    drawn: Callable[[], Any] | None = None
    off: tuple[Any, ...] = ()
    inert: str | None = None
    refused: tuple[str, str] | None = None
    on_resume: Literal["listed", "kept", "same", "unimportant"] = "listed"


NOT_YET = "accepted, not implemented yet"  # the `inert` reason of an option that will have an effect later


def option(default: Any = None, *, help: str, **details: Any) -> Any:
    """Declares a dataclass field as an option.

    `minimum` and `maximum` are inclusive, `above` exclusive. `parse` turns the value given (a string from the command
    line, any TOML value from a file) into the field's value and raises `ValueError` saying what was expected.
    `toml_level` is "dataset" or "subset" for an option that is the default of a dataset-TOML key, `toml_key` that key
    where its name differs. `waives` names required options that are not needed when this one is given.
    `positional`: the value stands on the command line without a flag, in the order of declaration. `secret`: it is
    written nowhere. `takes_first`: of a list of values only the first is used. `drawn`: draws the value
    that stands in a file of options which was asked for without one. `variable`: an environment variable that
    gives the value where the option is not given. `off`: values that mean "not given", beside those of
    `OptionField.is_off`. `inert`: why a value is accepted and does nothing; one warning names all such
    options of a run. `refused`: why any value but "off" is an error, and what to do. `on_resume`: what a difference
    to the saved run means when a run is resumed: it is "listed"; listed, with the saved value "kept" in force; an
    error, since the run must be the "same"; or "unimportant".
    """
    spec = OptionSpec(help=help, **details)
    return dataclasses.field(default=default, metadata={"option": spec})


@dataclasses.dataclass(frozen=True)
class OptionField:
    """One declared option: its dataclass, type and specification."""

    name: str
    owner: type
    kind: type  # bool, int, float or str
    is_list: bool
    default: Any
    spec: OptionSpec

    @property
    def flag(self) -> str:
        return self.name.upper() if self.spec.positional else f"--{self.name}"

    @property
    def flags(self) -> tuple[str, ...]:
        """The flag in all spellings; a name of one letter has one dash."""
        return (self.flag, *(f"-{name}" if len(name) == 1 else f"--{name}" for name in self.spec.aliases))

    @property
    def help(self) -> str:
        """What it does, and whether it does so here."""
        status = self.spec.inert if self.spec.refused is None else f"refused: it {self.spec.refused[0]}"
        return self.spec.help if status is None else f"{self.spec.help} ({status})"

    @property
    def spellings(self) -> tuple[str, ...]:
        """The option's name and aliases, without dashes."""
        return (self.name, *self.spec.aliases)

    def is_off(self, value: Any) -> bool:
        """Whether a given value means "not given", as programs that write every option do.

        That is "" and an empty list; for an option that is off by default also false, "none", and 0 where no number
        that it takes is 0; for a path the number 0; and what `spec.off` holds.
        """
        if isinstance(value, (list, tuple)):
            return all(map(self.is_off, value))
        if self.spec.metavar in _PATHS and value == 0:
            return True
        return value == "" or any(_means(value, off) for off in self.off_values)

    @property
    def off_values(self) -> tuple[Any, ...]:
        """The values beside "" that mean "not given"."""
        spec, off = self.spec, self.spec.off
        if self.kind is not bool and (not self.default or self.default in off):
            words = () if spec.metavar == FREE_TEXT else (word for word in _NONE if word not in (spec.choices or ()))
            off = (*off, False, *words)
        if self.default is None and ((spec.minimum or 0) > 0 or (spec.above is not None and spec.above >= 0)):
            off = (*off, 0)
        return off


_FIELDS: dict[type, tuple[OptionField, ...]] = {}  # types of annotations are slow to find, and asked for often


def option_fields(owner: type) -> tuple[OptionField, ...]:
    """The options that a dataclass declares, in order."""
    if owner not in _FIELDS:
        _FIELDS[owner] = tuple(_find_fields(owner))
    return _FIELDS[owner]


def _find_fields(owner: type) -> Iterator[OptionField]:
    hints = typing.get_type_hints(owner)
    for field in dataclasses.fields(owner):
        spec = field.metadata.get("option")
        if spec is not None:
            kind, is_list = _unwrap(hints[field.name])
            yield OptionField(field.name, owner, kind, is_list, field.default, spec)


def _unwrap(annotation: Any) -> tuple[type, bool]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(item for item in typing.get_args(annotation) if item is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def plain_values(groups: Iterable[Any]) -> dict[str, Any]:
    """The options that are not at their defaults, by name, without secrets; tuples as lists."""
    values = {}
    for group in groups:
        for each in option_fields(type(group)):
            value = getattr(group, each.name)
            if value != each.default and not each.spec.secret:
                values[each.name] = list(value) if isinstance(value, tuple) else value
    return values


def secret_flags(owners: Iterable[type]) -> tuple[str, ...]:
    """The flags, in all spellings, whose values are never shown."""
    secret = (field for owner in owners for field in option_fields(owner) if field.spec.secret)
    return tuple(f"--{name}" for field in secret for name in field.spellings)


TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def convert(field: OptionField, value: Any) -> Any:
    """Checks and converts one given value: a text of a command line, or any value of a TOML or JSON file.

    Unambiguous values of other types are accepted, as programs write them: 0 and 1 for a switch, 1.0 for a whole
    number, a number as text, a text as number. One that means "off" becomes the default.
    Raises `ValueError` with what was expected.
    """
    if field.is_off(value):
        return field.default
    if field.spec.takes_first and isinstance(value, (list, tuple)):
        value = value[0]
    if field.spec.parse is not None:
        return field.spec.parse(value)
    if field.is_list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert_one(field, item) for item in items if item != "")
    return _convert_one(field, value)


def _convert_one(field: OptionField, value: Any) -> Any:
    converted = _TYPED[field.kind](value)
    spec = field.spec
    if spec.metavar in _PATHS:
        check_path(converted)
    if spec.choices is not None and converted not in spec.choices:
        raise ValueError(f"one of {', '.join(spec.choices)}")
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError("a finite number")
    if spec.minimum is not None and converted < spec.minimum:
        raise ValueError(f"{spec.minimum} or more")
    if spec.maximum is not None and converted > spec.maximum:
        raise ValueError(f"{spec.maximum} or less")
    if spec.above is not None and converted <= spec.above:
        raise ValueError(f"more than {spec.above}")
    return converted


def check_path(path: str) -> None:
    """Raises `ValueError`, with what was expected, for a path that no file or folder can have."""
    if "\0" in path or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.replace("\\", "/").split("/")):
        raise ValueError(f"a path without null characters, whose names have at most {_LONGEST_NAME} bytes each")


def _switch(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise ValueError(TYPE_NAMES[bool])


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(TYPE_NAMES[str])
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(TYPE_NAMES[float])
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(TYPE_NAMES[float]) from None


def whole_number(value: Any) -> int:
    """A whole number, given as 8, 8.0, "8" or "8.0". Raises `ValueError` for anything else."""
    expected = ValueError(TYPE_NAMES[int])
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    try:
        number = _number(value)
    except ValueError:
        raise expected from None
    if not number.is_integer():
        raise expected
    return int(number)


_TYPED: dict[type, Callable[[Any], Any]] = {bool: _switch, str: _text, float: _number, int: whole_number}


def _means(value: Any, off: Any) -> bool:
    """Whether a given value is the "off" value, in any case of letters, and as text too: "0" and "0.0" for 0."""
    if isinstance(off, str):
        return isinstance(value, str) and value.lower() == off
    if off is False:
        return value is False
    if isinstance(value, bool) or not isinstance(value, str):
        return value == off
    try:
        return float(value) == off
    except ValueError:
        return False
