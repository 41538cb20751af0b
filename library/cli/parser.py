"""From a command line and a `--config_file` to typed, checked options.

Precedence: command line, then config file, then default. Every problem found is reported, together.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from library.cli.errors import UserError, UserErrors, nearest_name, raise_together
from library.cli.options import OptionField, Problems, convert, option, option_fields
from library.cli.toml_files import read_toml, toml_text

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ConfigFileOptions:
    """Where options come from beside the command line."""

    GROUP: ClassVar[str] = "Configuration file"

    config_file: str | None = option(
        help="TOML file of options; sections are flattened, the command line wins", metavar="FILE",
        on_resume="unimportant",
    )  # fmt: skip
    output_config: bool = option(
        False, help="write the options given to --config_file and end", on_resume="unimportant"
    )

    def problems(self) -> Iterator[UserError]:
        if self.output_config and self.config_file is None:
            yield UserError("--output_config needs --config_file", hint="name the file to write with --config_file")


class Options:
    """The option groups of a run, each under its class: `options[NoiseOptions].noise_offset`.

    A group that a script extends, a subclass with more options, is found under the class that it extends too.
    """

    def __init__(self, groups: Iterable[Any]):
        self._all = list(groups)
        self._groups = {owner: group for group in self._all for owner in type(group).__mro__ if owner is not object}

    def __getitem__(self, owner: type[T]) -> T:
        return self._groups[owner]

    def get(self, owner: type[T]) -> T | None:
        """A group, or None where a check must do without it because it has problems of its own."""
        return self._groups[owner]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all)


class OutputConfigWritten(Exception):
    """`--output_config` did its work: the program is to end without doing anything else."""


class _ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str):  # argparse would print its usage and exit
        raise UserError(message, hint=f"{self.prog} --help lists the options")


class _ListAction(argparse.Action):
    """The last list given holds, as the last of any option does; no values are an empty list."""

    def __call__(self, parser, namespace, values, option_string=None):
        earlier = getattr(namespace, self.dest, None)
        if earlier:
            logger.warning("%s is given twice: %s is not used", option_string, " ".join(map(str, earlier)))
        setattr(namespace, self.dest, values)


def build_argument_parser(groups: Sequence[type], program: str, description: str) -> argparse.ArgumentParser:
    """The flags of all groups, titled as in the documents. Values stay text: conversion is done by `convert`."""
    parser = _ArgumentParser(
        prog=program, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for owner in groups:
        section = parser.add_argument_group(owner.GROUP)
        for field in option_fields(owner):
            if field.spec.positional:
                section.add_argument(field.name, nargs="?", metavar=field.flag, help=_help_text(field))
                continue
            flags = [field.flag, *(f"--{alias}" for alias in field.spec.aliases)]
            section.add_argument(*flags, dest=field.name, help=_help_text(field), **_argparse_kind(field))
    return parser


def _argparse_kind(field: OptionField) -> dict[str, Any]:
    if field.kind is bool:
        return {"action": argparse.BooleanOptionalAction if field.default else "store_true"}
    metavar = field.spec.metavar or (
        "{" + ",".join(field.spec.choices) + "}" if field.spec.choices else field.kind.__name__.upper()
    )
    return {"metavar": metavar, "nargs": "*", "action": _ListAction} if field.is_list else {"metavar": metavar}


def _help_text(field: OptionField) -> str:
    text = field.spec.help.replace("%", "%%")
    if field.spec.required:
        return f"{text} (required)"
    if field.kind is bool or field.default in (None, ()):
        return text
    return f"{text} (default: {field.default})"


def parse_options(
    argv: Sequence[str],
    groups: Sequence[type],
    *,
    program: str,
    description: str,
    checks: Sequence[Callable[[Options], Problems]] = (),
) -> Options:
    """Parses, converts and checks.

    `checks` look at several groups, or at files; one that reads a group with problems of its own is left out.
    Raises `UserError` with everything that is wrong, or `OutputConfigWritten`.
    """
    groups = (*groups, ConfigFileOptions)
    fields = {field.name: field for owner in groups for field in option_fields(owner)}
    problems: list[UserError] = []
    given = _from_command_line(build_argument_parser(groups, program, description), argv, fields, problems)
    is_output = "output_config" in given
    if "config_file" in given and not is_output:
        in_file = _from_config_file(given["config_file"], fields, problems)
        given = {**in_file, **given}
    options, bad_names = _convert_all(given, groups, fields, problems, check_required=not is_output)
    if is_output and not problems:
        _write_config(options, fields)
    problems += _run_checks(options, groups, bad_names, fields, checks)
    raise_together(problems)
    return options


def _from_command_line(
    parser: argparse.ArgumentParser, argv: Sequence[str], fields: dict[str, OptionField], problems: list[UserError]
) -> dict[str, Any]:
    has_positionals = any(field.spec.positional for field in fields.values())
    parse = parser.parse_known_intermixed_args if has_positionals else parser.parse_known_args
    namespace, unknown = parse(argv)
    after_flag = False
    for word in unknown:
        if word.startswith("--"):
            problems.append(_unknown_name(word.split("=")[0].removeprefix("--"), fields, "--{}"))
            after_flag = True
        elif not after_flag:
            problems.append(UserError(f"unexpected argument {word!r}", hint="every value follows its --option"))
    return vars(namespace)


def _unknown_name(name: str, fields: dict[str, OptionField], form: str, where: str = "") -> UserError:
    valid = {alias for field in fields.values() for alias in (field.name, *field.spec.aliases)}
    nearest = nearest_name(name, valid)
    hint = f"did you mean {form.format(nearest)}?" if nearest else "--help lists the options"
    return UserError(f"{where}unknown option {form.format(name)}", hint=hint)


@dataclasses.dataclass(frozen=True)
class _FileValue:
    """A value from the config file: it has a type already, and errors name the file."""

    value: Any
    file: str


def _from_config_file(path: str, fields: dict[str, OptionField], problems: list[UserError]) -> dict[str, Any]:
    if not Path(path).exists() and Path(f"{path}.toml").exists():
        path = f"{path}.toml"
    try:
        document = read_toml(path, "--config_file")
    except UserError as error:
        problems.append(error)
        return {}
    by_spelling = {alias: field for field in fields.values() for alias in (field.name, *field.spec.aliases)}
    given: dict[str, Any] = {}
    for key, value in _flatten(document):
        if key not in by_spelling or by_spelling[key].owner is ConfigFileOptions:
            problems.append(_unknown_name(key, fields, "{}", where=f"{path}: "))
        elif by_spelling[key].name in given:
            problems.append(UserError(f"{path}: {key} stands there twice", hint="keep one of the two lines"))
        else:
            given[by_spelling[key].name] = _FileValue(value, path)
    return given


def _flatten(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value)
        else:
            yield key, value


def _convert_all(
    given: dict[str, Any],
    groups: Sequence[type],
    fields: dict[str, OptionField],
    problems: list[UserError],
    check_required: bool,
) -> tuple[Options, set[str]]:
    values: dict[str, Any] = {}
    bad_names: set[str] = set()
    for name, raw in given.items():
        in_file = isinstance(raw, _FileValue)
        value = raw.value if in_file else raw
        try:
            values[name] = convert(fields[name], value, from_text=not in_file)
        except ValueError as error:
            bad_names.add(name)
            shown = "..." if fields[name].spec.secret else repr(value) if in_file else value
            place = f"{raw.file}: {name} = {shown}" if in_file else f"--{name} {shown}"
            problems.append(UserError(f"{place} is not valid", hint=f"give {error}"))
    waived = {name for field in fields.values() if values.get(field.name) for name in field.spec.waives}
    for field in fields.values():
        if check_required and field.spec.required and field.name not in given and field.name not in waived:
            bad_names.add(field.name)
            problems.append(UserError(f"{field.flag} is missing", hint=f"it is required: {field.spec.help}"))
    built = []
    for owner in groups:
        names = {field.name for field in option_fields(owner)}
        built.append(owner(**{name: value for name, value in values.items() if name in names}))
    return Options(built), bad_names


class _OnlyValid(Options):
    """Options seen by a check: reading a group that has problems of its own stops the check."""

    class Invalid(Exception):
        pass

    def __init__(self, options: Options, invalid: set[type]):
        super().__init__(options)
        self._invalid = invalid

    def __getitem__(self, owner: type[T]) -> T:
        if self._is_invalid(owner):
            raise self.Invalid
        return super().__getitem__(owner)

    def get(self, owner: type[T]) -> T | None:
        return None if self._is_invalid(owner) else super().get(owner)

    def _is_invalid(self, owner: type) -> bool:
        return any(issubclass(invalid, owner) for invalid in self._invalid)


def _run_checks(
    options: Options,
    groups: Sequence[type],
    bad_names: set[str],
    fields: dict[str, OptionField],
    checks: Sequence[Callable[[Options], Problems]],
) -> list[UserError]:
    found: list[UserError] = []
    invalid = {fields[name].owner for name in bad_names}
    for owner in groups:
        if owner not in invalid and hasattr(owner, "problems"):
            own = list(options[owner].problems())
            found += own
            if own:
                invalid.add(owner)
    visible = _OnlyValid(options, invalid)
    for check in checks:
        try:
            found += check(visible)
        except _OnlyValid.Invalid:
            continue
        except UserErrors as errors:
            found += errors.errors
        except UserError as error:
            found.append(error)
    return found


def _write_config(options: Options, fields: dict[str, OptionField]) -> None:
    from library.cli.atomic_files import atomic_path

    target = options[ConfigFileOptions].config_file
    if target is None:
        raise UserError("--output_config needs --config_file", hint="name the file to write with --config_file")
    if not target.endswith(".toml"):
        target += ".toml"
    if os.path.exists(target):
        raise UserError(f"--config_file {target} exists already", hint="name a new file, or delete that one first")
    document: dict[str, dict[str, Any]] = {}
    for group in options:
        if isinstance(group, ConfigFileOptions):
            continue
        section = {
            field.name: _toml_value(getattr(group, field.name))
            for field in option_fields(type(group))
            if getattr(group, field.name) is not None and not field.spec.secret
        }
        document[group.GROUP.lower().replace(" ", "_")] = section
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(Path(target)) as temporary:
        Path(temporary).write_text(toml_text(document), encoding="utf-8")
    raise OutputConfigWritten(target)


def _toml_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
