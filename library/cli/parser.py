"""From a command line and a `--config_file` to typed, checked options.

Precedence: command line, then config file, then default. Every problem found is reported, together.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from library.cli.checks import Check, Unavailable, errors_of, find_errors
from library.cli.config_file import FileValue, Findings, read_config_file, unknown_option, write_config_file
from library.cli.errors import UserError, nearest_name, raise_together
from library.cli.foreign_options import ForeignOptions
from library.cli.options import OptionField, OptionGroup, convert, option, option_fields

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ConfigFileOptions:
    """Options of the configuration file."""

    GROUP: ClassVar[str] = "Configuration file"

    config_file: str | None = option(
        help="TOML file of options; sections are ignored, the command line takes precedence", metavar="FILE",
        on_resume="unimportant",
    )  # fmt: skip
    output_config: bool = option(
        False, help="write the given options to --config_file and exit", on_resume="unimportant"
    )

    def check(self) -> Iterator[UserError]:
        if self.output_config and self.config_file is None:
            yield UserError("--output_config needs --config_file", hint="name the file to write with --config_file")


class Options:
    """The option groups of a run, by class: `options[NoiseOptions].noise_offset`.

    A group that a script extends by a subclass is found under the base class too.
    """

    def __init__(self, groups: Iterable[Any], invalid: Collection[type] = ()):
        """`invalid`: groups with errors, which checks of several groups cannot read."""
        self._all = list(groups)
        self._groups = {owner: group for group in self._all for owner in type(group).__mro__ if owner is not object}
        self._invalid = {base for owner in invalid for base in owner.__mro__ if base is not object}

    def __getitem__(self, owner: type[T]) -> T:
        """Raises `Unavailable`, which skips the check that asks, for a group that is invalid itself."""
        if owner in self._invalid:
            raise Unavailable
        return self._groups[owner]

    def get(self, owner: type[T]) -> T | None:
        """A group, or None where the group itself is invalid, and where the script has none."""
        return None if owner in self._invalid else self._groups.get(owner)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all)


class OutputConfigWritten(Exception):
    """`--output_config` has written the file: the program exits."""


class _ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str):  # argparse would print its usage and exit
        raise UserError(message, hint=f"{self.prog} --help lists the options")


class _ListAction(argparse.Action):
    """The last list given is used, as for any option; no values are an empty list."""

    def __call__(self, parser, namespace, values, option_string=None):
        earlier = getattr(namespace, self.dest, None)
        if earlier:
            logger.warning("%s is given twice: %s is not used", option_string, " ".join(map(str, earlier)))
        setattr(namespace, self.dest, values)


def build_argument_parser(
    groups: Sequence[type[OptionGroup]], program: str, description: str
) -> argparse.ArgumentParser:
    """The flags of all groups, titled as in the docs. Values stay text: `convert` converts them."""
    parser = _ArgumentParser(
        prog=program, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for owner in groups:
        section = parser.add_argument_group(owner.GROUP)
        for field in option_fields(owner):
            if field.spec.positional:
                nargs = "*" if field.is_list else "?"
                section.add_argument(field.name, nargs=nargs, metavar=field.flag, help=_help_text(field))
                continue
            section.add_argument(*field.flags, dest=field.name, help=_help_text(field), **_argparse_kind(field))
    return parser


def _argparse_kind(field: OptionField) -> dict[str, Any]:
    if field.kind is bool:
        return {"action": argparse.BooleanOptionalAction if field.default else "store_true"}
    metavar = field.spec.metavar or (
        "{" + ",".join(field.spec.choices) + "}" if field.spec.choices else field.kind.__name__.upper()
    )
    is_list = field.is_list or field.spec.takes_first
    return {"metavar": metavar, "nargs": "*", "action": _ListAction} if is_list else {"metavar": metavar}


def _help_text(field: OptionField) -> str:
    text = field.help.replace("%", "%%")
    if field.spec.required:
        return f"{text} (required)"
    if field.kind is bool or field.default in (None, ()):
        return text
    return f"{text} (default: {field.default})"


def parse_options(
    argv: Sequence[str],
    groups: Sequence[type[OptionGroup]],
    *,
    program: str,
    description: str,
    checks: Sequence[Check[Options]] = (),
) -> Options:
    """Reads options and runs the checks on them. Raises `UserError` with all errors, or `OutputConfigWritten`."""
    options, errors = read_options(argv, groups, program=program, description=description)
    raise_together([*errors, *find_errors(checks, "options", options)])
    return options


def read_options(
    argv: Sequence[str],
    groups: Sequence[type[OptionGroup]],
    *,
    program: str,
    description: str,
    screen: Callable[[Options], None] | None = None,
    foreign: ForeignOptions | None = None,
) -> tuple[Options, list[UserError]]:
    """Parses, converts, and checks each group by itself; returns the options and all errors.

    Groups with errors are `Unavailable` to checks. An error of `screen`, which runs first, is raised alone. `foreign`:
    the known options of other programs. Raises `OutputConfigWritten` where that is all that was asked for.
    """
    groups, foreign = (*groups, ConfigFileOptions), foreign or ForeignOptions()
    fields = {field.name: field for owner in groups for field in option_fields(owner)}
    found = Findings()
    parser = build_argument_parser(groups, program, description)
    given: dict[str, Any] = _from_command_line(parser, argv, fields, foreign, found)
    is_output = "output_config" in given
    if given.get("config_file") and not is_output and _is_valid(fields["config_file"], given["config_file"]):
        known = {name: field for name, field in fields.items() if field.owner is not ConfigFileOptions}
        given = {**read_config_file(given["config_file"], known, foreign, found, given), **given}
    if not is_output:
        given = {**given, **_from_environment(given, fields, found)}
    built, bad_names = _convert_all(given, groups, fields, found, check_required=not is_output)
    if screen is not None:
        screen(Options(built))
    for warning in found.warnings:
        logger.warning("%s", warning)
    if is_output and not found.problems:
        _write_config(Options(built))
    invalid = {fields[name].owner for name in bad_names}
    errors = list(found.problems)
    for group in built:
        if type(group) not in invalid and hasattr(group, "check"):
            own = list(errors_of(group.check))
            errors += own
            invalid |= {type(group)} if own else set()
    return Options(built, invalid), errors


def _from_command_line(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    fields: Mapping[str, OptionField],
    foreign: ForeignOptions,
    found: Findings,
) -> dict[str, Any]:
    has_positionals = any(field.spec.positional for field in fields.values())
    parse = parser.parse_known_intermixed_args if has_positionals else parser.parse_known_args
    namespace, unknown = parse([_unabbreviated(word, fields, found) for word in argv])
    after_flag = False
    for word in unknown:
        if word.startswith("--"):
            found.problems.append(_unknown_flag(word.split("=")[0], fields, foreign))
            after_flag = True
        elif not after_flag:
            found.problems.append(UserError(f"unexpected argument {word!r}", hint="every value follows its --option"))
    return vars(namespace)


def _from_environment(given: Mapping[str, Any], fields: Mapping[str, OptionField], found: Findings) -> dict[str, str]:
    """The values of environment variables for options that are not given; says so, and where one is overridden."""
    values = {}
    for field in fields.values():
        value = os.environ.get(field.spec.variable or "", "")
        if value == str(field.default) or field.is_off(value):
            continue
        raw = given.get(field.name)
        own = raw.value if isinstance(raw, FileValue) else raw
        if own is None or field.is_off(own):
            if value in (field.spec.choices or (value,)):
                values[field.name] = value
                logger.info("%s %s, as the environment says (%s)", field.flag, value, field.spec.variable)
            else:
                found.warnings.append(f"{field.spec.variable}={value} is not used: {field.flag} does not have it")
        elif str(own) != value:
            found.warnings.append(f"{field.flag} {own} is used, not {value} of the environment ({field.spec.variable})")
    return values


def _unabbreviated(word: str, fields: Mapping[str, OptionField], found: Findings) -> str:
    """A word of the command line with an unambiguously abbreviated flag written in full, as argparse does."""
    flag, equals, value = word.partition("=")
    begun = _flags_begun(flag, fields)
    if len(begun) != 1 or begun == [flag]:
        return word
    found.warnings.append(f"{flag} is read as {begun[0]}")
    return begun[0] + equals + value


def _flags_begun(text: str, fields: Mapping[str, OptionField]) -> list[str]:
    """The flags that a word of the command line can mean: itself, or those it abbreviates."""
    flags = {f"--{spelling}": field.flag for field in fields.values() for spelling in field.spellings}
    if not text.startswith("--") or text == "--":
        return []
    if text in flags or text.startswith("--no-"):
        return [text]
    return sorted({field_flag for flag, field_flag in flags.items() if flag.startswith(text)})


def _unknown_flag(flag: str, fields: Mapping[str, OptionField], foreign: ForeignOptions) -> UserError:
    begun = _flags_begun(flag, fields)
    if len(begun) > 1:
        return UserError(f"{flag} can be {' or '.join(begun)}", hint="write the option in full")
    return unknown_option(flag.removeprefix("--"), fields, foreign, "--{}")


def _convert_all(
    given: dict[str, Any],
    groups: Sequence[type[OptionGroup]],
    fields: dict[str, OptionField],
    found: Findings,
    check_required: bool,
) -> tuple[list[Any], set[str]]:
    """The groups, with defaults for values that are not valid, and the names of these."""
    values: dict[str, Any] = {}
    bad_names: set[str] = set()
    for name, raw in given.items():
        field, value = fields[name], raw.value if isinstance(raw, FileValue) else raw
        if field.is_off(value):
            continue
        try:
            values[name] = convert(field, value)
        except ValueError as error:
            bad_names.add(name)
            nearest = nearest_name(str(value), field.spec.choices or ())
            hint = f"did you mean {nearest}? Give {error}" if nearest else f"give {error}"
            found.problems.append(UserError(f"{_shown(field, raw)} is not valid", hint=hint))
        if field.spec.takes_first and isinstance(value, (list, tuple)) and len(set(map(str, value))) > 1:
            found.warnings.append(f"{_shown(field, raw)}: the first value is used")
    waived = {name for field in fields.values() if values.get(field.name) for name in field.spec.waives}
    for field in fields.values():
        if check_required and field.spec.required and field.name not in {*values, *bad_names, *waived}:
            bad_names.add(field.name)
            found.problems.append(UserError(f"{field.flag} is missing", hint=f"it is required: {field.spec.help}"))
    found.problems += _refusals(values, fields)
    found.warnings += _inert(values, fields)
    built = []
    for owner in groups:
        names = {field.name for field in option_fields(owner)}
        built.append(owner(**{name: value for name, value in values.items() if name in names}))
    return built, bad_names


def _is_valid(field: OptionField, value: Any) -> bool:
    try:
        convert(field, value)
    except ValueError:
        return False
    return True


def _shown(field: OptionField, raw: Any) -> str:
    """A given value as the user wrote it."""
    if isinstance(raw, FileValue):
        return f"{raw.file}: {raw.key} = {'...' if field.spec.secret else repr(raw.value)}"
    text = " ".join(map(str, raw)) if isinstance(raw, list) else raw
    return f"{field.flag} {'...' if field.spec.secret else text}"


def _refusals(values: Mapping[str, Any], fields: Mapping[str, OptionField]) -> Iterator[UserError]:
    for name, value in values.items():
        field = fields[name]
        if field.spec.refused is not None and value != field.default:
            reason, hint = field.spec.refused
            yield UserError(f"{field.flag} {reason}", hint=hint)


def _inert(values: Mapping[str, Any], fields: Mapping[str, OptionField]) -> Iterator[str]:
    """One line for each reason why options have no effect, with all options that it applies to."""
    by_reason: dict[str, list[str]] = {}
    for name, value in values.items():
        reason = fields[name].spec.inert
        if reason is not None and value != fields[name].default:
            by_reason.setdefault(reason, []).append(fields[name].flag)
    for reason, flags in by_reason.items():
        yield f"{', '.join(flags)}: {reason}"


def _write_config(options: Options) -> None:
    target = options[ConfigFileOptions].config_file
    if target is None:
        raise UserError("--output_config needs --config_file", hint="name the file to write with --config_file")
    groups = [group for group in options if not isinstance(group, ConfigFileOptions)]
    raise OutputConfigWritten(write_config_file(target, groups))
