"""Options declared once: a frozen dataclass per concern becomes flags, help, config keys and checks.

A field is declared with `option(...)`. Its annotation gives the type: `bool` (a flag without value), `int`, `float`,
`str`, `tuple[str, ...]` (a list of values), each possibly `| None`. A dataclass has a `GROUP` class variable, the
title under which its flags stand in `--help`, and may have a method `problems()` that yields a `UserError` for each
contradiction between its fields.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

from library.cli.errors import UserError

Problems = Iterable[UserError]  # what a check finds


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """What is known of one option beside its name, type and default."""

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
    on_resume: Literal["listed", "kept", "same", "unimportant"] = "listed"


def option(default: Any = None, *, help: str, **details: Any) -> Any:
    """Declares a dataclass field as an option.

    `minimum` and `maximum` are inclusive, `above` exclusive. `parse` turns the value given (a string from the command
    line, any TOML value from a file) into the field's value and raises `ValueError` saying what was expected.
    `toml_level` is "dataset" or "subset" for an option that is the default of a dataset-TOML key, `toml_key` that key
    where it is spelled differently. `waives` names required options that are not needed when this one is given.
    `positional`: the value stands on the command line without a flag, in the order of declaration. `secret`: it is
    written nowhere. `on_resume`: what a difference to the saved run means when a run is resumed: it is "listed";
    listed, with the saved value "kept" in force; an error, since the run must be the "same"; or "unimportant".
    """
    spec = OptionSpec(help=help, **details)
    return dataclasses.field(default=default, metadata={"option": spec})


@dataclasses.dataclass(frozen=True)
class OptionField:
    """One declared option: where it is, its type and its specification."""

    name: str
    owner: type
    kind: type  # bool, int, float or str
    is_list: bool
    is_optional: bool
    default: Any
    spec: OptionSpec

    @property
    def flag(self) -> str:
        return self.name.upper() if self.spec.positional else f"--{self.name}"


def option_fields(owner: type) -> list[OptionField]:
    """The options that a dataclass declares, in order."""
    hints = typing.get_type_hints(owner)
    fields = []
    for field in dataclasses.fields(owner):
        spec = field.metadata.get("option")
        if spec is None:
            continue
        kind, is_list, is_optional = _unwrap(hints[field.name])
        fields.append(OptionField(field.name, owner, kind, is_list, is_optional, field.default, spec))
    return fields


def _unwrap(annotation: Any) -> tuple[type, bool, bool]:
    is_optional = False
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = [item for item in typing.get_args(annotation) if item is not type(None)]
        is_optional = len(inner) < len(typing.get_args(annotation))
        annotation = inner[0]
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True, is_optional
    return annotation, False, is_optional


def secret_flags(owners: Iterable[type]) -> tuple[str, ...]:
    """The flags, in all spellings, whose values are shown nowhere."""
    secret = (field for owner in owners for field in option_fields(owner) if field.spec.secret)
    return tuple(f"--{name}" for field in secret for name in (field.name, *field.spec.aliases))


TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def convert(field: OptionField, value: Any, *, from_text: bool) -> Any:
    """Checks and converts one given value.

    `from_text`: the value comes from a command line, where all is text; otherwise it is a TOML value, whose type must
    be right. Raises `ValueError` with what was expected.
    """
    if field.spec.parse is not None:
        return field.spec.parse(value)
    if field.is_list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert_one(field, item, from_text) for item in items)
    return _convert_one(field, value, from_text)


def _convert_one(field: OptionField, value: Any, from_text: bool) -> Any:
    converted = _typed(field.kind, value, from_text)
    spec = field.spec
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


def _typed(kind: type, value: Any, from_text: bool) -> Any:
    expected = ValueError(TYPE_NAMES[kind])
    if from_text and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise expected from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise expected from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise expected
    return value
