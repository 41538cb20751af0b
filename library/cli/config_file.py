"""The `--config_file`: reads options from it, also those that other training programs write, and writes one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from library.cli.atomic_files import atomic_path
from library.cli.documents import is_unicode, read_toml, toml_text
from library.cli.errors import UserError, nearest_name
from library.cli.foreign_options import ForeignOptions, OtherFamily, says_something
from library.cli.options import OptionField, convert, option_fields, plain_values


@dataclass
class Findings:
    """Errors and warnings from reading options; warnings are logged once the file is known to be for this script."""

    problems: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FileValue:
    """A value from a configuration file, with its file and key for messages. `section`: its table, "" for none."""

    value: Any
    file: str
    section: str
    key: str


def read_config_file(
    path: str,
    fields: Mapping[str, OptionField],
    foreign: ForeignOptions,
    findings: Findings,
    overridden: Collection[str] = (),
) -> dict[str, FileValue]:
    """The options in the file, by name; its tables are flattened. Errors are added to `findings`.

    `overridden`: options that the command line gives too; what the file would add to one of them is unused.

    One warning lists the keys of other programs that are not used. Raises `OtherFamily` for a file for another model
    family.
    """
    if not Path(path).exists() and Path(f"{path}.toml").exists():
        path = f"{path}.toml"
    try:
        document = read_toml(path, "--config_file")
    except UserError as error:
        findings.problems.append(error)
        return {}
    found = [FileValue(value, path, section, key) for section, key, value in _flatten(document)]
    by_spelling = {name: field for field in fields.values() for name in field.spellings}
    _check_family(path, [each for each in found if each.key not in by_spelling], foreign)
    given: dict[str, FileValue] = {}
    foreign_values = []
    for each in found:
        if each.key in by_spelling:
            option = by_spelling[each.key]
            if option.name not in given:
                given[option.name] = each
            elif not _is_same(option, given[option.name].value, each.value):
                findings.problems.append(_contradiction(given[option.name], each))
        else:
            foreign_values.append(each)
    unused: list[str] = []
    for each in foreign_values:
        if foreign.arguments.get(each.key) not in overridden:
            unused += _apply_foreign_key(each, fields, given, foreign, findings)
        elif says_something(each.value):
            unused.append(each.key)
    if unused:
        findings.warnings.append(f"{path}: not used here: {', '.join(unused)}")
    return given


def _flatten(table: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(section, key, value) of all values, in the order of the file; without recursion, sections nest to any depth."""
    open_tables = [("", iter(table.items()))]
    while open_tables:
        section, items = open_tables[-1]
        for key, value in items:
            if isinstance(value, dict):
                open_tables.append((f"{section}.{key}" if section else key, iter(value.items())))
                break
            yield section, key, value
        else:
            open_tables.pop()


def _check_family(path: str, foreign_values: Iterable[FileValue], foreign: ForeignOptions) -> None:
    named = [each.key for each in foreign_values if each.key in foreign.families and says_something(each.value)]
    if named:
        raise OtherFamily(
            f"{path} is for {foreign.family_of(named)}, which this script does not train: it sets {', '.join(named)}",
            hint="give a file for the model that you train, or remove these lines",
        )


def _is_same(field: OptionField, first: Any, second: Any) -> bool:
    try:
        return first == second or convert(field, first) == convert(field, second)
    except ValueError:
        return False


def _contradiction(first: FileValue, second: FileValue) -> UserError:
    def text(each: FileValue) -> str:
        return f"{each.key} = {each.value!r} {f'in [{each.section}]' if each.section else 'at the top'}"

    return UserError(f"{first.file}: {text(first)}, and {text(second)}", hint="keep one of the two lines")


def _apply_foreign_key(
    each: FileValue,
    fields: Mapping[str, OptionField],
    given: dict[str, FileValue],
    foreign: ForeignOptions,
    findings: Findings,
) -> Iterator[str]:
    """Applies a key of another program, or yields its name for the warning of unused keys."""
    target = foreign.renamed.get(each.key, "")
    if target in fields:
        if target not in given:
            given[target] = each
            findings.warnings.append(f"{each.file}: {each.key} = {each.value!r} is read as {target}")
        elif not _is_same(fields[target], given[target].value, each.value):
            findings.problems.append(_contradiction(given[target], each))
    elif foreign.arguments.get(each.key, "") in fields:
        if says_something(each.value):
            _add_argument(each, fields[foreign.arguments[each.key]], given, findings)
    elif foreign.knows(each.key):
        instead = foreign.instead_of(each.key, fields)
        if says_something(each.value):
            yield each.key if instead is None else f"{each.key} (here {instead})"
    else:
        findings.problems.append(unknown_option(each.key, fields, foreign, "{}", where=f"{each.file}: "))


def _add_argument(each: FileValue, option: OptionField, given: dict[str, FileValue], findings: Findings) -> None:
    """Adds `key=value` to a list option, unless the key is in it already."""
    target = option.name
    earlier = given[target].value if target in given else []
    if option.is_off(earlier):
        earlier = []
    arguments = earlier if isinstance(earlier, list) else [earlier]
    if any(str(argument).partition("=")[0].strip() == each.key for argument in arguments):
        return
    given[target] = FileValue([*arguments, f"{each.key}={each.value}"], each.file, each.section, target)
    findings.warnings.append(
        f"{each.file}: {each.key} = {each.value!r} is used as an argument of --{target}"
        " (the scripts that the file was written for ignore it there)"
    )


def unknown_option(
    name: str, fields: Mapping[str, OptionField], foreign: ForeignOptions, form: str, where: str = ""
) -> UserError:
    """The error for an unknown option, with the one that was probably meant. `form`: "--{}" for flags."""
    message = f"{where}unknown option {form.format(name)}"
    by_meaning = foreign.instead_of(name, fields)
    nearest = nearest_name(name, {spelling for field in fields.values() for spelling in field.spellings})
    if by_meaning is not None:
        hint = f"did you mean {form.format(by_meaning)}?"
    elif name in foreign.families:
        hint = f"it is for {foreign.family_of([name])}, which this script does not train"
    elif foreign.knows(name):
        hint = "it is an option of another script: leave it out"
    else:
        hint = f"did you mean {form.format(nearest)}?" if nearest else "--help lists the options"
    return UserError(message, hint=hint)


def write_config_file(target: str, groups: Iterable[Any]) -> str:
    """Writes the options that are not at their defaults, without secrets; returns the file's path.

    A table for each group. A seed that is not given is drawn, so that the file repeats the run.

    Raises `UserError` for a file that exists or cannot be written, and for values that TOML has no form for.
    """
    if not target.endswith(".toml"):
        target += ".toml"
    if Path(target).exists():
        raise UserError(f"--config_file {target} exists already", hint="name a new file, or delete this one first")
    tables = {group.GROUP.lower().replace(" ", "_"): {**plain_values([group]), **_drawn(group)} for group in groups}
    document = {name: table for name, table in tables.items() if table}
    for values in document.values():
        for name, value in values.items():
            if not is_unicode(str(value)):
                message = f"--{name} {ascii(value)} is not Unicode text, and cannot stand in {target}"
                raise UserError(message, hint="rename the file or folder, or leave out --output_config")
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(Path(target)) as temporary:
            Path(temporary).write_text(toml_text(document), encoding="utf-8", newline="\n")
    except OSError as error:
        message = f"--config_file {target} cannot be written: {error.strerror or error}"
        raise UserError(message, hint="check the path and the space left on the disk") from None
    return target


def _drawn(group: Any) -> dict[str, Any]:
    fields = [field for field in option_fields(type(group)) if field.spec.drawn and getattr(group, field.name) is None]
    return {field.name: field.spec.drawn() for field in fields if field.spec.drawn is not None}
