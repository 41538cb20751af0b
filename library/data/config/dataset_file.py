"""Reads and validates `--dataset_config`: tables [general], [[datasets]], [[datasets.subsets]] to `DatasetConfig`.

The file is TOML, or JSON with the same tables. A key that a table does not have is inherited: subset, dataset, general,
then the flag of that name. The keys are the options with a `toml_level`, and the few below that exist in the file only.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.documents import parse_json, parse_toml, read_text
from library.cli.errors import UserError, nearest_name
from library.cli.options import FREE_TEXT, OptionField, convert, option, option_fields
from library.data.buckets import BucketSettings, usable_steps
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.config.options import DatasetOptions, parse_custom_attributes, parse_path, parse_shards
from library.data.real_paths import RealPaths

logger = logging.getLogger(__name__)

_FLAG = "--dataset_config"
_ANY_RESOLUTION = (512, 512)  # replaces an invalid one, so that images are checked too; never used for buckets
KeyPath = tuple[Any, ...]  # keys and list indices from the top of the document


@dataclass(frozen=True)
class _InheritedKeys:
    """Subset keys without a flag that [general] and [[datasets]] may hold too."""

    GROUP: ClassVar[str] = "Dataset TOML"

    class_tokens: str | None = option(
        help="caption of images without a caption file", toml_level="subset", metavar=FREE_TEXT
    )
    custom_attributes: dict | None = option(
        help="any table; saved in the metadata of the trained model", parse=parse_custom_attributes,
        toml_level="subset",
    )  # fmt: skip


@dataclass(frozen=True)
class _SubsetOnlyKeys:
    """Keys of one folder or metadata file, valid in [[datasets.subsets]] only."""

    GROUP: ClassVar[str] = "Dataset TOML"

    image_dir: str | None = option(help="folder of images", parse=parse_path, toml_level="subset")
    metadata_file: str | None = option(help="JSON file that describes images", parse=parse_path, toml_level="subset")
    shards: tuple[str, ...] = option(
        (), help="tar shards of images and captions (WebDataset): a path, pattern, folder or URL, or a list of them",
        parse=parse_shards, toml_level="subset",
    )  # fmt: skip
    conditioning_data_dir: str | None = option(
        help="folder of mask images with the same names: white areas are trained, black ones are not",
        parse=parse_path,
        toml_level="subset",
    )
    is_reg: bool = option(False, help="the images are regularisation images", toml_level="subset")


Keys = dict[str, OptionField]

# keys that cannot be used with another source of images, and why
_NO_MASKS = {"conditioning_data_dir": "only folders of images can have masks"}
_FOLDER_KEYS = {
    "metadata_file": {
        "class_tokens": "captions come from the metadata file",
        "caption_extension": "captions come from the metadata file",
        **_NO_MASKS,
    },
    "shards": {
        "image_dir": "give the folder in a subset of its own",
        "metadata_file": "give it in a dataset of its own; captions of shards are in the shards",
        **_NO_MASKS,
    },
}


def _keys(level: str, *owners: type) -> Keys:
    fields = [field for owner in owners for field in option_fields(owner) if field.spec.toml_level == level]
    return {field.spec.toml_key or field.name: field for field in fields}


def _dataset_keys() -> Keys:
    return _keys("dataset", DatasetOptions)


def _inherited_keys() -> Keys:
    return _keys("subset", DatasetOptions, _InheritedKeys)


def _subset_keys() -> Keys:
    return {**_inherited_keys(), **_keys("subset", _SubsetOnlyKeys)}


def all_keys() -> Keys:
    """Every key that can stand in [[datasets]] or [[datasets.subsets]]."""
    return {**_dataset_keys(), **_subset_keys()}


def read_dataset_config(options: DatasetOptions) -> tuple[list[DatasetConfig], list[UserError]]:
    """The datasets that `--dataset_config` describes, and all errors in it.

    Invalid keys are dropped from the datasets, so that the caller can look for further errors. Raises `UserError` if
    the file cannot be parsed as TOML or JSON.
    """
    if options.dataset_config is None:
        raise ValueError("no --dataset_config to read")
    document = _read_document(options.dataset_config)
    document, wrong = _validate(document)
    problems = [UserError(f"{_FLAG} {options.dataset_config}: {each.message}", each.hint) for each in wrong.values()]
    builder = _Builder(options, frozenset(wrong))
    datasets = builder.build(_with_usable_steps(document))
    problems += [UserError(f"{_FLAG} {options.dataset_config}: {each.message}", each.hint) for each in builder.problems]
    return datasets, problems


def _read_document(path: str) -> dict[str, Any]:
    """JSON if the file is named .json or begins with a brace, which no TOML file does."""
    text = read_text(path, _FLAG, ".toml")
    if not path.lower().endswith(".json") and not text.lstrip().startswith("{"):
        return parse_toml(text, path, _FLAG)
    document = parse_json(text, path, _FLAG)
    if not isinstance(document, dict):
        hint = 'write {"general": {}, "datasets": [...]}'
        raise UserError(f"{_FLAG} {path} holds {type(document).__name__} {str(document)[:40]!r}, not a table", hint)
    return document


def _validate(document: dict[str, Any]) -> tuple[dict[str, Any], dict[KeyPath, UserError]]:
    """The document with validated and converted values, and the errors of those dropped from it, by key path."""
    import voluptuous

    schema = _make_schema(voluptuous)
    wrong: dict[KeyPath, UserError] = {}
    while True:
        try:
            return schema(document), wrong
        except voluptuous.MultipleInvalid as invalid:
            for path, error in {tuple(map(_plain, error.path)): error for error in invalid.errors}.items():
                wrong[path] = _as_user_error(path, error, _value_at(document, path))
                document = _without(document, path)


def _plain(part: Any) -> Any:
    return getattr(part, "schema", part)  # voluptuous may wrap a key in its marker


def _make_schema(voluptuous: Any) -> Any:
    """The voluptuous schema of the document, from the declared keys."""

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
            return convert(field, value)
        except ValueError as error:
            raise voluptuous.Invalid(str(error)) from None

    return check


class _UnknownKey(str):
    """The message of an unknown key: the names that are valid in that table."""


def _reject(voluptuous: Any, valid: Iterable[str]) -> Callable[[Any], Any]:
    names = tuple(valid)

    def reject(value: Any) -> Any:
        raise voluptuous.Invalid(_UnknownKey(", ".join(names)))

    return reject


def _as_user_error(path: KeyPath, invalid: Any, value: Any) -> UserError:
    if isinstance(invalid.msg, _UnknownKey):
        return _unknown_key(path, invalid.msg.split(", "))
    shown = "a table" if isinstance(value, dict) else repr(value)
    expected = {
        "expected a dictionary": "a table",
        "expected a list": "tables in double brackets: [[datasets]]",
    }
    return UserError(f"{path_text(path)} = {shown} is not valid", hint=f"give {expected.get(invalid.msg, invalid.msg)}")


def _unknown_key(path: KeyPath, valid: list[str]) -> UserError:
    name = str(path[-1])
    levels = {"[[datasets]] or [general]": _dataset_keys(), "[[datasets.subsets]]": _subset_keys()}
    homes = [title for title, keys in levels.items() if name in keys]
    if homes:
        return UserError(f"{path_text(path)} is in the wrong table", hint=f"move {name} to {homes[0]}")
    nearest = nearest_name(name, valid)
    hint = f"did you mean {nearest}?" if nearest else f"known keys: {', '.join(valid)}"
    return UserError(f"unknown key {path_text(path)}", hint=hint)


def path_text(path: KeyPath) -> str:
    """A key path as text, such as datasets[0].subsets[1].num_repeats."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _value_at(document: Any, path: KeyPath) -> Any:
    for part in path:
        document = document[part]
    return document


def _without(document: Any, path: KeyPath) -> Any:
    """A copy of the document without the value at `path`; in a list, an empty table replaces it."""
    first, rest = path[0], path[1:]
    if isinstance(document, list):
        return [*document[:first], _without(document[first], rest) if rest else {}, *document[first + 1 :]]
    if rest:
        return {**document, first: _without(document[first], rest)}
    return {key: value for key, value in document.items() if key != first}


def _with_usable_steps(document: dict[str, Any]) -> dict[str, Any]:
    """A copy of the validated document with `bucket_reso_steps` of at least 8."""

    def usable(table: dict[str, Any], key_path: str) -> dict[str, Any]:
        key = "bucket_reso_steps"
        return {**table, key: usable_steps(table[key], f"{key_path}.{key}")} if key in table else table

    general = usable(document.get("general", {}), "general")
    datasets = [usable(table, f"datasets[{index}]") for index, table in enumerate(document.get("datasets", []))]
    return {**document, "general": general, "datasets": datasets}


class _Builder:
    """Makes datasets from a validated document, and collects errors that involve several keys."""

    def __init__(self, options: DatasetOptions, wrong: frozenset[KeyPath]):
        self._options = options
        self._wrong = wrong
        self.problems: list[UserError] = []

    def build(self, document: dict[str, Any]) -> list[DatasetConfig]:
        general = document.get("general", {})
        tables = document.get("datasets", [])
        if not tables and not any(path[0] == "datasets" for path in self._wrong):
            self._add("it has no [[datasets]]", "add at least one, with [[datasets.subsets]] in it")
        datasets = [self._dataset(general, table, index) for index, table in enumerate(tables)]
        return [dataset for dataset in datasets if dataset is not None]

    def _add(self, message: str, hint: str) -> None:
        self.problems.append(UserError(message, hint))

    def _dataset(self, general: dict[str, Any], table: dict[str, Any], index: int) -> DatasetConfig | None:
        key_path = f"datasets[{index}]"
        values = {name: self._value(name, field, table, general) for name, field in _dataset_keys().items()}
        if self._is_wrong("datasets", index):
            return None
        inner = table.get("subsets", [])
        if not inner and not self._is_wrong("datasets", index, "subsets"):
            self._add(
                f"{key_path} has no [[datasets.subsets]]", "add at least one, with image_dir, metadata_file or shards"
            )
        found = [self._subset(general, table, each, (index, number)) for number, each in enumerate(inner)]
        subsets = _without_duplicates([subset for subset in found if subset is not None])
        self._check_one_kind(key_path, subsets)
        if self._was_wrong("caption_extension"):
            return None  # every caption would be reported as missing
        if values["resolution"] is None:
            if not self._was_wrong("resolution"):
                self._add(
                    f"{key_path}.resolution is missing", "set resolution there or in [general], or give --resolution"
                )
            values["resolution"] = _ANY_RESOLUTION
        config = DatasetConfig(key_path=key_path, subsets=tuple(subsets), **values)
        bucket_keys = [field.name for field in dataclasses.fields(BucketSettings)]
        if values["resolution"] is not _ANY_RESOLUTION and not any(map(self._was_wrong, bucket_keys)):
            self.problems += config.bucket_settings.problems(f"{key_path}.")
        return config

    def _subset(
        self, general: dict[str, Any], dataset: dict[str, Any], table: dict[str, Any], indices: tuple[int, int]
    ) -> SubsetConfig | None:
        path = ("datasets", indices[0], "subsets", indices[1])
        values = {name: self._value(name, field, table, dataset, general) for name, field in _subset_keys().items()}
        key_path = path_text(path)
        if any(self._is_wrong(*path, *key) for key in ((), ("image_dir",), ("metadata_file",), ("shards",))):
            return None  # its images, and what describes them, are unknown
        if values["shards"]:
            self._check_keys(key_path, table, "shards")
            values |= {"image_dir": None, "metadata_file": None, "conditioning_data_dir": None}
        elif values["metadata_file"] is not None:
            self._check_metadata_keys(key_path, table)
            values |= {"is_reg": False, "conditioning_data_dir": None}
        elif values["conditioning_data_dir"] is not None and values["alpha_mask"]:
            self._add(
                f"{key_path}.conditioning_data_dir cannot be used with alpha_mask: both are masks of the loss",
                "set alpha_mask = false there, or remove conditioning_data_dir",
            )
        if values["image_dir"] is None and values["metadata_file"] is None and not values["shards"]:
            self._add(f"{key_path}.image_dir is missing", "give a folder of images, a metadata_file or shards")
            return None
        return SubsetConfig(key_path=key_path, **values)

    def _check_metadata_keys(self, key_path: str, table: dict[str, Any]) -> None:
        """Rejects keys that cannot be used with `metadata_file`."""
        if table.get("is_reg"):
            self._add(
                f"{key_path}.is_reg = true cannot be used with {key_path}.metadata_file",
                "give regularisation images by image_dir, in a dataset of such subsets",
            )
        self._check_keys(key_path, table, "metadata_file")

    def _check_keys(self, key_path: str, table: dict[str, Any], source: str) -> None:
        for name, reason in _FOLDER_KEYS[source].items():
            if name in table:
                self._add(f"{key_path}.{name} cannot be used with {key_path}.{source}", f"remove {name}: {reason}")

    def _check_one_kind(self, key_path: str, subsets: list[SubsetConfig]) -> None:
        first = {subset.source == "metadata": subset.key_path for subset in reversed(subsets)}
        if len(first) > 1:
            self._add(
                f"{key_path} mixes two kinds of subsets: {first[True]} has metadata_file, {first[False]} not",
                "train_network.py and train_textual_inversion.py take them in two [[datasets]]; train_db.py trains on"
                " folders of images only, fine_tune.py on metadata files",
            )

    def _value(self, name: str, field: OptionField, *tables: dict[str, Any]) -> Any:
        """The value in the first table that has the key, or else that of its flag."""
        for table in tables:
            if name in table:
                return table[name]
        return getattr(self._options, field.name) if field.owner is DatasetOptions else field.default

    def _is_wrong(self, *path: Any) -> bool:
        return path in self._wrong

    def _was_wrong(self, key: str) -> bool:
        return any(path[-1] == key for path in self._wrong)


def _without_duplicates(subsets: list[SubsetConfig]) -> list[SubsetConfig]:
    """The subsets of a dataset without duplicates, which are skipped with a warning."""
    real = RealPaths()
    first: dict[tuple[Any, ...], SubsetConfig] = {}
    for subset in subsets:
        paths = (subset.metadata_file, subset.image_dir)
        identity = (*(None if path is None else real.folder(path) for path in paths), subset.shards, subset.is_reg)
        original = first.setdefault(identity, subset)
        if original is not subset:
            what = {"metadata": "metadata_file", "folder": "image_dir", "shards": "shards"}[subset.source]
            logger.warning(
                "%s is skipped: its %s %s is also that of %s (to use images more often, set num_repeats)",
                subset.key_path, what, subset.source_name, original.key_path,
            )  # fmt: skip
    return list(first.values())
