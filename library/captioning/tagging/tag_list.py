"""A tagger's `selected_tags.csv`: the tags of its outputs, in order, with their categories.

Categories are Danbooru's numbers or words. Columns are found by their names, in any order; others are ignored.
"""

from __future__ import annotations

import csv
import io

from library.captioning.tagging.tag_selection import Tag
from library.cli.documents import read_text
from library.cli.errors import UserError

_CATEGORIES = {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "meta", 9: "rating"}
_NAMES = ("name", "tag", "tag_name")
_CATEGORY_NAMES = ("category", "category_name", "type")
_SEPARATORS = ",;\t"


def read_tag_list(path: str) -> list[Tag]:
    """The tags of a CSV file. Raises `UserError` where it has no column of names, or a row without a name."""
    text = read_text(path, "tag list", ".csv")
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text), delimiter=separator)
    header = [column.strip().lower() for column in next(rows, [])]
    name_column = _column(header, _NAMES)
    if name_column is None:
        raise UserError(
            f"tag list {path} has no column of names: its first line is {separator.join(header)[:100]!r}",
            hint="it is to have the columns name and category, as the taggers' own selected_tags.csv",
        )
    category_column = _column(header, _CATEGORY_NAMES)
    tags = []
    for row in rows:
        if not row:
            continue
        if len(row) <= max(name_column, category_column or 0) or not row[name_column].strip():
            raise UserError(f"tag list {path}, line {rows.line_num}: no tag", hint="download the file again")
        category = "general" if category_column is None else _category(row[category_column])
        tags.append(Tag(row[name_column].strip(), category))
    return tags


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _category(text: str) -> str:
    """A category's word; a number without one stays a number, whose threshold is `--thresh`."""
    try:
        return _CATEGORIES.get(int(float(text)), text.strip())
    except ValueError:
        return text.strip().lower()
