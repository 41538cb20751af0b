"""Cleans the captions and tags of a metadata file by rules."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from library.cli.errors import UserError, plural
from library.cli.jobs.outcome import Outcome
from library.cli.logging import progress_bar
from library.data.scan.metadata_entries import FORM
from library.metadata.cleaning_rules import CleaningRules, make_rules, read_rules
from library.metadata.files import read_metadata, write_metadata
from library.metadata.options import CleanOptions

logger = logging.getLogger(__name__)

SEPARATOR = ", "  # of tags


def clean_caption(text: str, rules: CleaningRules) -> str:
    """The caption after all replacements, in their order; one that shortens it is repeated while it finds something."""
    for old, new in rules.caption_replacements:
        text = text.replace(old, new)
        while len(new) < len(old) and old in text:
            text = text.replace(old, new)
    return text


def clean_tags(text: str, rules: CleaningRules) -> str:
    """The comma-separated tags that the rules leave, in their order."""
    tags = [_without_underscores(tag, rules) for tag in text.split(SEPARATOR)]
    tags = _cut(tags, rules)
    if any(_matches(tag, rules.several_people) for tag in tags):
        for pattern in rules.describe_one:
            described = [tag for tag in tags if re.fullmatch(pattern, tag)]
            tags = [tag for tag in tags if len(described) < 2 or tag not in described]
    tags = list(_without_general(tags, rules))
    while tags and not tags[-1]:
        tags.pop()
    return SEPARATOR.join(tags[next((index for index, tag in enumerate(tags) if tag), 0) :])


def _without_underscores(tag: str, rules: CleaningRules) -> str:
    is_kept = not rules.replace_underscores or tag.strip() in rules.keep_underscores
    return tag if is_kept else tag.replace("_", " ")


def _cut(tags: list[str], rules: CleaningRules) -> list[str]:
    first = next((index for index, tag in enumerate(tags) if index and _matches(tag, rules.cut_from)), len(tags))
    return tags[:first]


def _without_general(tags: list[str], rules: CleaningRules) -> Iterator[str]:
    ends = {tag[index + 1 :] for tag in tags for index, character in enumerate(tag) if character == " "}
    return (tag for tag in tags if tag not in ends or not _matches(tag, rules.general))


def _matches(tag: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, tag) for pattern in patterns)


def clean_metadata(options: CleanOptions, table: Mapping[str, Any], source: str, outcome: Outcome) -> None:
    """Cleans all entries of a metadata file, by the rules of `table`, which stands in `source`, or of `--rules`.

    Everything else in the entries stays as it is. Raises `UserError`, and writes nothing, for rules or a metadata file
    that are not valid.
    """
    rules = make_rules(table, source) if options.rules is None else read_rules(options.rules, "--rules")
    entries = read_metadata(options.source, "IN_JSON")
    if not entries:
        raise UserError(f"IN_JSON {options.source} describes no images", hint=FORM)
    num_tags = _count_tags(entries)
    with progress_bar(len(entries), "cleaning") as progress:
        for key, entry in entries.items():
            changes = _changes(entry, rules)
            for name, text in changes.items():
                if options.debug:
                    logger.info("%s: %s: %s -> %s", key, name, entry[name], text)
            entry.update(changes)
            outcome.done += bool(changes)
            outcome.skipped["clean already"] += not changes
            progress.update()
    logger.info("%d of %s went", num_tags - _count_tags(entries), plural(num_tags, "tag"))
    outcome.skipped = +outcome.skipped  # without a reason that holds for none
    write_metadata(options.target, entries)


def _count_tags(entries: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(len(entry["tags"].split(SEPARATOR)) for entry in entries.values() if entry.get("tags"))


def _changes(entry: Mapping[str, Any], rules: CleaningRules) -> dict[str, str]:
    """What becomes of an entry's caption and tags, where cleaning changes them."""
    texts = {name: entry[name] for name in ("caption", "tags") if entry.get(name) is not None}
    cleaned = {name: _CLEANERS[name](text, rules) for name, text in texts.items()}
    return {name: text for name, text in cleaned.items() if text != texts[name]}


_CLEANERS = {"caption": clean_caption, "tags": clean_tags}
