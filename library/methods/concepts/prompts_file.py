"""Reads `--prompts_file`, TOML or YAML: entries, and sliders, which stand for several entries. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from library.cli.documents import parse_toml, read_text
from library.cli.errors import UserError, nearest_name, raise_together
from library.methods.concepts.entries import (
    DYNAMIC_STEP,
    ENHANCE,
    ERASE,
    ConceptEntry,
    dynamic_sides,
    entry_of,
    slider_entries,
)

FLAG = "--prompts_file"
_ENDINGS = (".toml", ".yaml", ".yml")
_PIXELS = 8  # that sides are multiples of


@dataclass(frozen=True)
class _Key:
    """What is written for a key. `parse` raises `ValueError` for anything else."""

    parse: Callable[[Any], Any]
    expected: str


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value.strip()


def _some_text(value: Any) -> str:
    return _text(value) or _refuse()


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return [_text(each) for each in value]


def _refuse() -> Any:
    raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, (bool, list, dict)) or value is None or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    number = _number(value)
    return int(number) if number == int(number) and number >= 1 else _refuse()


def _switch(value: Any) -> bool:
    return bool(value) if value in (True, False) else _refuse()


def _action(value: Any) -> str:
    return value if value in (ERASE, ENHANCE) else _refuse()


def _pixels(value: Any) -> int:
    side = _whole(value)
    return side if side % _PIXELS == 0 else _refuse()


_SHARED = {
    "guidance_scale": _Key(_number, "a number"),
    "resolution": _Key(_pixels, f"a multiple of {_PIXELS} pixels"),
    "dynamic_resolution": _Key(_switch, "true or false"),
    "batch_size": _Key(_whole, "a whole number from 1 on"),
    "multiplier": _Key(lambda value: _number(value) or _refuse(), "a number other than 0, at which nothing is trained"),
    "weight": _Key(lambda value: _number(value) if _number(value) > 0 else _refuse(), "a number above 0"),
}
_TEXT, _SOME_TEXT = _Key(_text, "a text in quotes"), _Key(_some_text, "a text in quotes")
ENTRY_KEYS = {
    "target": _SOME_TEXT,
    "positive": _TEXT,
    "unconditional": _TEXT,
    "neutral": _TEXT,
    "action": _Key(_action, f'"{ERASE}" or "{ENHANCE}"'),
    **_SHARED,
}
SLIDER_KEYS = {
    "target_class": _TEXT,
    "positive": _SOME_TEXT,
    "negative": _TEXT,
    "neutral": _TEXT,
    "neutrals": _Key(_texts, "a list of texts"),
    **_SHARED,
}
_REQUIRED_OF_SLIDERS = ("target_class", "positive", "negative")
_EXAMPLE = 'target = "frog"'


def read_prompts_file(path: str, *, resolution: int) -> tuple[ConceptEntry, ...]:
    """The entries of a UTF-8 file; `resolution`: of those that name none.

    TOML: `[[prompts]]` tables. YAML: a list of tables, or the same under `prompts`. A table with `targets` holds
    sliders. What stands beside `prompts` or `targets` is what their tables share. Raises `UserError` for a file that
    cannot be read or holds no entry and, together, for all that is wrong in it.
    """
    document = _document(path)
    errors: list[UserError] = []
    entries = [entry for table, name in _tables(document, path, errors) for entry in _entries(table, name, errors)]
    raise_together(errors)
    if not entries:
        raise UserError(f"{FLAG} {path} holds no entry", hint=f"give each concept a [[prompts]] table with {_EXAMPLE}")
    return tuple(entry if "resolution" in given else _at(entry, resolution) for entry, given in entries)


def _document(path: str) -> Any:
    ending = Path(path).suffix.lower()
    if ending not in _ENDINGS:
        raise UserError(f"{FLAG} {path} is neither .toml nor .yaml", hint=f"write entries such as {_EXAMPLE} in TOML")
    text = read_text(path, FLAG, ending)
    if ending == ".toml":
        return parse_toml(text, path, FLAG)
    try:
        return yaml.load(text, _UniqueKeys)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f" (at line {mark.line + 1}, column {mark.column + 1})"
        reason = f"{error.problem or error.context}{place}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is nested too deeply"
    raise UserError(f"{FLAG} {path} is not valid YAML: {reason}", hint="fix the file at that place")


class _UniqueKeys(yaml.SafeLoader):
    """Raises for a key that a table has twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class _Table:
    """The keys of an entry or of a slider, with those that it shares with others."""

    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    is_slider: bool


_Named = tuple[_Table, str]


def _tables(document: Any, path: str, errors: list[UserError]) -> Iterator[_Named]:
    """The tables of a document, each with its name for messages."""
    where = f"{FLAG} {path}"
    if isinstance(document, list):
        document = {"prompts": document}
    if not isinstance(document, dict):
        errors.append(UserError(f"{where} holds no entries", hint=f"write a list of entries such as {_EXAMPLE}"))
        return
    yield from _inside(document, f"{where}, ", "", {}, errors)


def _inside(
    table: Mapping[str, Any], where: str, name: str, shared: Mapping[str, Any], errors: list[UserError]
) -> Iterator[_Named]:
    """The entries and sliders in a table, or the table itself."""
    lists = {key: table[key] for key in ("prompts", "targets") if key in table}
    if not lists:
        if table:
            yield _Table(table, shared, "target_class" in table), where + (name or "its only entry")
        return
    known = {**ENTRY_KEYS, **SLIDER_KEYS}
    rest = {**shared, **{key: value for key, value in table.items() if key not in lists}}
    errors += [_unknown(key, f"{where}{name or 'the file'}", (*known, *lists)) for key in rest if key not in known]
    for key, children in lists.items():
        title = f"{name}.{key}" if name else key
        for index, child in enumerate(children if isinstance(children, list) else [children]):
            if not isinstance(child, dict):
                errors.append(UserError(f"{where}{title}[{index}] is not a table", hint=f"write {_EXAMPLE}"))
            elif key == "targets":
                yield _Table(child, rest, is_slider=True), f"{where}{title}[{index}]"
            else:
                yield from _inside(child, where, f"{title}[{index}]", rest, errors)


def _entries(table: _Table, where: str, errors: list[UserError]) -> Iterator[tuple[ConceptEntry, dict[str, Any]]]:
    """The entries of a table, each with the values given; what is wrong is added to `errors`."""
    keys = SLIDER_KEYS if table.is_slider else ENTRY_KEYS
    required = _REQUIRED_OF_SLIDERS if table.is_slider else ("target",)
    given = {**{key: value for key, value in table.shared.items() if key in keys}, **table.own}
    problems = [_unknown(key, where, keys) for key in table.own if key not in keys]
    values: dict[str, Any] = {}
    for key in (key for key in given if key in keys):
        try:
            values[key] = keys[key].parse(given[key])
        except (ValueError, TypeError, OverflowError):
            shown = "a table" if isinstance(given[key], dict) else repr(given[key])
            problems.append(UserError(f"{where}: {key} = {shown} is not valid", hint=f"give {keys[key].expected}"))
    missing = [key for key in required if key not in given]
    if missing and not problems:
        what = "slider" if table.is_slider else "entry"
        problems.append(UserError(f"{where} has no {missing[0]}", hint=f'give the {what} one: {missing[0]} = "..."'))
    if values.get("dynamic_resolution") and not dynamic_sides(values.get("resolution", 512)):
        problems.append(
            UserError(
                f"{where}: dynamic_resolution of {values['resolution']} pixels has no sizes",
                hint=f"give a resolution of {DYNAMIC_STEP} or more: sides are multiples of {DYNAMIC_STEP}",
            )
        )
    errors += problems
    if not problems:
        yield from ((entry, values) for entry in (slider_entries if table.is_slider else _one_entry)(values))


def _one_entry(values: dict[str, Any]) -> list[ConceptEntry]:
    return [entry_of(values)]


def _at(entry: ConceptEntry, resolution: int) -> ConceptEntry:
    return replace(entry, resolution=resolution)


def _unknown(key: Any, where: str, valid: Mapping[str, Any] | tuple[str, ...]) -> UserError:
    nearest = nearest_name(str(key), valid)
    hint = f"did you mean {nearest}?" if nearest else f"known keys: {', '.join(valid)}"
    return UserError(f"{where}: unknown key {key}", hint=hint)
