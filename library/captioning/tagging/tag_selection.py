"""From a tagger's probabilities to the tags of an image: thresholds, names, and order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from library.captioning.tagging.options import TagOptions, replacement_pairs

RATING, CHARACTER, QUALITY = "rating", "character", "quality"
_ONE_OF_EACH = (RATING, QUALITY)  # categories of which an image has the most probable tag, if asked for
_WITH_THRESHOLD = ("general", CHARACTER, "meta", "model", "copyright", "artist")
_TWO_LETTERS = re.compile(r"[^\W_]{2}")  # next to each other, which no kaomoji has: o_o, ^_^, (o)_(o)
_LONGEST_SHORT = 3  # characters of tags such as o_o that keep their underscore
_NAME_AND_SERIES = re.compile(r"(?P<name>.+?)[_ ]\((?P<series>[^()]+)\)")


@dataclass(frozen=True)
class Tag:
    """A tag that a tagger gives. Categories: general, character, rating and others, as its list of tags has them."""

    name: str
    category: str


@dataclass(frozen=True)
class TagRules:
    """What becomes of a model's tags; made once for all images."""

    tags: tuple[Tag, ...]  # in the order of the model's output
    names: tuple[tuple[str, ...], ...]  # what each is written as: nothing where it is undesired
    thresholds: tuple[float, ...]
    first: tuple[str, ...]  # normalised names
    options: TagOptions


def make_rules(tags: Sequence[Tag], options: TagOptions, separator: str) -> TagRules:
    """`separator`: of the tags in captions, which separates those of options too, beside commas."""
    given = {category: getattr(options, f"{category}_threshold") for category in _WITH_THRESHOLD}
    thresholds = {category: value for category, value in given.items() if value is not None}
    undesired = set(map(_normal, _listed(options.undesired_tags, separator)))
    pairs = {_normal(old): new for old, new in replacement_pairs(options.tag_replacement or "")}
    return TagRules(
        tuple(tags),
        tuple(_written(tag, options, pairs, undesired) for tag in tags),
        tuple(thresholds.get(tag.category, options.thresh) for tag in tags),
        tuple(map(_normal, _listed(options.always_first_tags or "", separator))),
        options,
    )


def select_tags(probabilities: Sequence[float], rules: TagRules) -> list[str]:
    """The tags of an image, each once, in the model's order but for what options move."""
    chosen: dict[str, list[str]] = {}
    for index, tag in enumerate(rules.tags):
        if tag.category not in _ONE_OF_EACH and probabilities[index] >= rules.thresholds[index]:
            group = CHARACTER if tag.category == CHARACTER and rules.options.character_tags_first else ""
            chosen.setdefault(group, []).extend(rules.names[index])
    selected = [*chosen.get(CHARACTER, ()), *chosen.get("", ())]
    options = rules.options
    if options.use_quality_tags or options.use_quality_tags_as_last_tag:
        selected = _with_one(selected, QUALITY, options.use_quality_tags_as_last_tag, probabilities, rules)
    if options.use_rating_tags or options.use_rating_tags_as_last_tag:
        selected = _with_one(selected, RATING, options.use_rating_tags_as_last_tag, probabilities, rules)
    order = {name: number for number, name in enumerate(rules.first)}
    return sorted(dict.fromkeys(selected), key=lambda name: order.get(_normal(name), len(order)))


def append_tags(existing: str, tags: Iterable[str], separator: str) -> str:
    """The tags of a file as they are, and behind them the others that it does not have."""
    has = set(map(_normal, _listed(existing, separator)))
    new = [tag for tag in tags if _normal(tag) not in has]
    return separator.join([existing, *new] if existing else new)


def _with_one(
    selected: list[str], category: str, is_last: bool, probabilities: Sequence[float], rules: TagRules
) -> list[str]:
    """The tags with the most probable one of a category."""
    indices = [index for index, tag in enumerate(rules.tags) if tag.category == category]
    if not indices:
        return selected
    one = rules.names[max(indices, key=lambda index: probabilities[index])]
    return [*selected, *one] if is_last else [*one, *selected]


def _written(tag: Tag, options: TagOptions, pairs: Mapping[str, str], undesired: set[str]) -> tuple[str, ...]:
    names = [tag.name]
    parts = _NAME_AND_SERIES.fullmatch(tag.name) if tag.category == CHARACTER and options.character_tag_expand else None
    if parts is not None:
        names = [parts["name"], parts["series"]]
    if _normal(tag.name) in undesired:
        return ()
    shown = (pairs.get(_normal(name)) or _shown(name, options.remove_underscore) for name in names)
    return tuple(name for name in shown if _normal(name) not in undesired)


def _shown(name: str, removes_underscore: bool) -> str:
    if not removes_underscore or len(name) <= _LONGEST_SHORT or not _TWO_LETTERS.search(name):
        return name
    return name.replace("_", " ")


def _normal(name: str) -> str:
    """A tag for comparing: users write it with underscores or blanks."""
    return name.strip().replace("_", " ")


def _listed(text: str, separator: str) -> list[str]:
    """The tags in a text, separated as captions are or by commas."""
    separators = {",", separator.strip() or ","}
    parts = re.split("|".join(map(re.escape, separators)), text)
    return [part.strip() for part in parts if part.strip()]
