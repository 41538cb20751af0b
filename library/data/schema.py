"""Reads `--dataset_config`: tables [general], [[datasets]] and [[datasets.subsets]] into `DatasetConfig`.

A key that a table leaves out is taken from the table around it: subset, dataset, general, then the flag of that name.
The keys are those options that say `toml_level`, and the few below that exist in TOML only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError, nearest_name
from library.cli.options import OptionField, convert, option, option_fields
from library.cli.toml_files import read_toml
from library.data.buckets import BucketSettings
from library.data.config import DatasetConfig, SubsetConfig
from library.data.options import DatasetOptions

_FLAG = "--dataset_config"
_ANY_RESOLUTION = (512, 512)  # stands in for one that is wrong, so that pictures are looked at too; nothing is placed
Path = tuple[Any, ...]  # keys and list indices from the top of the document


@dataclass(frozen=True)
class _InheritedKeys:
    """Subset keys without a flag that [general] and [[datasets]] may hold too."""

    GROUP: ClassVar[str] = "Dataset TOML"

    class_tokens: str | None = option(help="caption of pictures without caption file", toml_level="subset")


@dataclass(frozen=True)
class _SubsetOnlyKeys:
    """Keys that describe one folder and stand in [[datasets.subsets]] alone."""

    GROUP: ClassVar[str] = "Dataset TOML"

    image_dir: str | None = option(help="folder of pictures", toml_level="subset")
    metadata_file: str | None = option(help="JSON file that describes pictures", toml_level="subset")
    is_reg: bool = option(False, help="the pictures are regularisation pictures", toml_level="subset")


Keys = dict[str, OptionField]


def _keys(level: str, *owners: type) -> Keys:
    fields = [field for owner in owners for field in option_fields(owner) if field.spec.toml_level == level]
    return {field.spec.toml_key or field.name: field for field in fields}


def _dataset_keys() -> Keys:
    return _keys("dataset", DatasetOptions)


def _inherited_keys() -> Keys:
    return _keys("subset", DatasetOptions, _InheritedKeys)


def _subset_keys() -> Keys:
    return {**_inherited_keys(), **_keys("subset", _SubsetOnlyKeys)}


def read_dataset_config(options: DatasetOptions) -> tuple[list[DatasetConfig], list[UserError]]:
    """The datasets that `--dataset_config` describes, and everything that is wrong with it.

    What is wrong is left out of the datasets, so that a caller can go on to look for further problems. Raises
    `UserError` if the file cannot be read as TOML.
    """
    if options.dataset_config is None:
        raise ValueError("no --dataset_config to read")
    document = read_toml(options.dataset_config, _FLAG)
    document, wrong = _validate(document)
    problems = [UserError(f"{_FLAG} {options.dataset_config}: {each.message}", each.hint) for each in wrong.values()]
    builder = _Builder(options, frozenset(wrong))
    datasets = builder.build(document)
    problems += [UserError(f"{_FLAG} {options.dataset_config}: {each.message}", each.hint) for each in builder.problems]
    return datasets, problems


def _validate(document: dict[str, Any]) -> tuple[dict[str, Any], dict[Path, UserError]]:
    """The document with checked and converted values, and what had to be left out of it, by its path."""
    import voluptuous

    schema = _make_schema(voluptuous)
    wrong: dict[Path, UserError] = {}
    while True:
        try:
            return schema(document), wrong
        except voluptuous.MultipleInvalid as invalid:
            for path, error in {tuple(map(_plain, error.path)): error for error in invalid.errors}.items():
                wrong[path] = _as_user_error(path, error, _value_at(document, path))
                document = _without(document, path)


def _plain(part: Any) -> Any:
    return getattr(part, "schema", part)  # voluptuous may give its marker around a key


def _make_schema(voluptuous: Any) -> Any:
    """The schema of the document, made from the declared keys."""

    def table(keys: Keys, **tables: Any) -> dict[Any, Any]:
        known = {voluptuous.Optional(name): _check(voluptuous, field) for name, field in keys.items()}
        nested = {voluptuous.Optional(name): value for name, value in tables.items()}
        valid = [*keys, *tables]
        return {**known, **nested, voluptuous.Extra: _reject(voluptuous, valid)}

    outer = {**_dataset_keys(), **_inherited_keys()}
    subset = table(_subset_keys())
    dataset = table(outer, subsets=[subset])
    return voluptuous.Schema(table({}, general=table(outer), datasets=[dataset]))


def _check(voluptuous: Any, field: OptionField) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        try:
            return convert(field, value, from_text=False)
        except ValueError as error:
            raise voluptuous.Invalid(str(error)) from None

    return check


class _UnknownKey(str):
    """The message about an unknown key: the names that are valid in its place."""


def _reject(voluptuous: Any, valid: Iterable[str]) -> Callable[[Any], Any]:
    names = tuple(valid)

    def reject(value: Any) -> Any:
        raise voluptuous.Invalid(_UnknownKey(", ".join(names)))

    return reject


def _as_user_error(path: Path, invalid: Any, value: Any) -> UserError:
    place = path_text(path)
    if isinstance(invalid.msg, _UnknownKey):
        return _unknown_key(path, invalid.msg.split(", "))
    shown = "a table" if isinstance(value, dict) else repr(value)
    expected = {"expected a dictionary": "a table", "expected a list": "tables in double brackets, as in [[datasets]]"}
    return UserError(f"{place} = {shown} is not valid", hint=f"give {expected.get(invalid.msg, invalid.msg)}")


def _unknown_key(path: Path, valid: list[str]) -> UserError:
    name = str(path[-1])
    levels = {"[[datasets]] or [general]": _dataset_keys(), "[[datasets.subsets]]": _subset_keys()}
    homes = [title for title, keys in levels.items() if name in keys]
    if homes:
        return UserError(f"{path_text(path)} stands in the wrong table", hint=f"{name} belongs into {homes[0]}")
    nearest = nearest_name(name, valid)
    hint = f"did you mean {nearest}?" if nearest else f"known keys: {', '.join(valid)}"
    return UserError(f"unknown key {path_text(path)}", hint=hint)


def path_text(path: Path) -> str:
    """A place in the document as its user would write it, such as datasets[0].subsets[1].num_repeats."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _value_at(document: Any, path: Path) -> Any:
    for part in path:
        document = document[part]
    return document


def _without(document: Any, path: Path) -> Any:
    """A copy of the document without what stands at `path`; in a list an empty table takes its place."""
    first, rest = path[0], path[1:]
    if isinstance(document, list):
        return [*document[:first], _without(document[first], rest) if rest else {}, *document[first + 1 :]]
    if rest:
        return {**document, first: _without(document[first], rest)}
    return {key: value for key, value in document.items() if key != first}


class _Builder:
    """Makes datasets of a checked document, and collects what is wrong across keys."""

    def __init__(self, options: DatasetOptions, wrong: frozenset[Path]):
        self._options = options
        self._wrong = wrong
        self.problems: list[UserError] = []

    def build(self, document: dict[str, Any]) -> list[DatasetConfig]:
        general = document.get("general", {})
        tables = document.get("datasets", [])
        if not tables and not any(path[0] == "datasets" for path in self._wrong):
            self._add("it has no [[datasets]]", "describe at least one, with [[datasets.subsets]] in it")
        datasets = [self._dataset(general, table, index) for index, table in enumerate(tables)]
        return [dataset for dataset in datasets if dataset is not None]

    def _add(self, message: str, hint: str) -> None:
        self.problems.append(UserError(message, hint))

    def _dataset(self, general: dict[str, Any], table: dict[str, Any], index: int) -> DatasetConfig | None:
        place = f"datasets[{index}]"
        values = {name: self._value(name, field, table, general) for name, field in _dataset_keys().items()}
        if self._is_wrong("datasets", index):
            return None
        inner = table.get("subsets", [])
        if not inner and not self._is_wrong("datasets", index, "subsets"):
            self._add(f"{place} has no [[datasets.subsets]]", "give at least one, with image_dir")
        subsets = [self._subset(general, table, each, (index, number)) for number, each in enumerate(inner)]
        if self._was_wrong("caption_extension"):
            return None  # every caption would seem to be missing
        if values["resolution"] is None:
            if not self._was_wrong("resolution"):
                self._add(
                    f"{place}.resolution is missing", "set resolution there or in [general], or give --resolution"
                )
            values["resolution"] = _ANY_RESOLUTION
        config = DatasetConfig(place=place, subsets=tuple(each for each in subsets if each is not None), **values)
        bucket_keys = [field.name for field in dataclasses.fields(BucketSettings)]
        if values["resolution"] is not _ANY_RESOLUTION and not any(map(self._was_wrong, bucket_keys)):
            self.problems += config.bucket_settings.problems(f"{place}.")
        return config

    def _subset(
        self, general: dict[str, Any], dataset: dict[str, Any], table: dict[str, Any], indices: tuple[int, int]
    ) -> SubsetConfig | None:
        path = ("datasets", indices[0], "subsets", indices[1])
        values = {name: self._value(name, field, table, dataset, general) for name, field in _subset_keys().items()}
        if values["image_dir"] is None:
            if not self._is_wrong(*path) and not self._is_wrong(*path, "image_dir"):
                self._add(f"{path_text(path)}.image_dir is missing", "name the folder of pictures")
            return None
        return SubsetConfig(place=path_text(path), **values)

    def _value(self, name: str, field: OptionField, *tables: dict[str, Any]) -> Any:
        """What the first table that has the key says, or else the flag."""
        for table in tables:
            if name in table:
                return table[name]
        return getattr(self._options, field.name, field.default)

    def _is_wrong(self, *path: Any) -> bool:
        return path in self._wrong

    def _was_wrong(self, key: str) -> bool:
        return any(path[-1] == key for path in self._wrong)
