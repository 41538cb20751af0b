"""Prompts of sample images: their settings, and the options in a line of text."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from library.cli.documents import no_such_path
from library.cli.errors import UserError, nearest_name
from library.training.evaluation.samplers import SAMPLER_NAMES, sampler_row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplePrompt:
    """One sample image. `seed` None: derived from the run's seed and the prompt's position in the file.

    `image`, `mask`: for inpainting, what a part is drawn of, and which; without a mask one is drawn by the seed.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    sample_steps: int = 30
    scale: float = 7.5
    seed: int | None = None
    sampler: str | None = None
    image: str | None = None
    mask: str | None = None
    index: int = field(default=0, compare=False)  # its position in the file


def _size(text: str) -> int:
    return max(64, int(text) // 8 * 8)


def _steps(text: str) -> int:
    return max(1, min(1000, int(text)))


def _seed(text: str) -> int | None:
    seed = int(text)
    if seed >= 2**64:
        raise ValueError(text)
    return seed if seed >= 0 else None


def _scale(text: str) -> float:
    scale = float(text)
    if not math.isfinite(scale):
        raise ValueError(text)
    return scale


def _sampler(text: str) -> str:
    name = text.lower()
    if name not in SAMPLER_NAMES:
        raise ValueError(text)
    return sampler_row(name)


@dataclass(frozen=True)
class _Setting:
    """A field of `SamplePrompt`, and what is written for it."""

    field: str
    parse: Callable[[str], object]
    expected: str


_WHOLE_NUMBER = "a whole number"
_NEGATIVE = _Setting("negative_prompt", str, "a text")
_WIDTH = _Setting("width", _size, _WHOLE_NUMBER)
_HEIGHT = _Setting("height", _size, _WHOLE_NUMBER)
_SEED = _Setting("seed", _seed, "a whole number below 2^64, or -1 for none")
_STEPS = _Setting("sample_steps", _steps, _WHOLE_NUMBER)
_SCALE = _Setting("scale", _scale, "a number")
_SAMPLER = _Setting("sampler", _sampler, f"one of {', '.join(SAMPLER_NAMES)}")
_IMAGE = _Setting("image", str, "the path of an image")
_MASK = _Setting("mask", str, "the path of a mask image")

# letters of an option in a line of text
LINE_OPTIONS = {
    "n": _NEGATIVE, "w": _WIDTH, "h": _HEIGHT, "d": _SEED, "s": _STEPS, "l": _SCALE, "ss": _SAMPLER,
    "i": _IMAGE, "img": _IMAGE, "im": _MASK,
}  # fmt: skip
# keys of a TOML or JSON file
TABLE_KEYS = {
    "prompt": _Setting("prompt", str, "a text"),
    "negative_prompt": _NEGATIVE,
    "width": _WIDTH,
    "height": _HEIGHT,
    "seed": _SEED,
    "sample_steps": _STEPS,
    "scale": _SCALE,
    "sample_sampler": _SAMPLER,
    "image": _IMAGE,
    "mask": _MASK,
}
_OPTION, _FIRST_OPTION = re.compile(r"\s--"), re.compile(r"\s*--(\w+)\s")


def parse_prompt_line(line: str, where: str, index: int = 0) -> SamplePrompt:
    """Parses one line; one that begins with an option has an empty prompt.

    Raises `UserError` naming `where`, the file and line, for an invalid value.
    """
    begins = _FIRST_OPTION.match(line)
    is_option = begins is not None and begins[1].lower() in LINE_OPTIONS
    prompt, *parts = _OPTION.split(f" {line.lstrip()}" if is_option else line)
    values: dict[str, Any] = {}
    for part in parts:
        letters, _, text = part.strip().replace("\t", " ").partition(" ")
        setting = LINE_OPTIONS.get(letters.lower())
        if setting is None:
            logger.warning("%s: --%s is not a prompt option and is ignored", where, letters)
        else:
            values[setting.field] = _parsed(setting, text.strip(), f"{where}: --{letters} {text.strip()}")
    return _with_image(SamplePrompt(prompt.strip(), index=index, **values), values, where)


def parse_prompt_table(table: Mapping[str, Any], where: str, index: int = 0) -> SamplePrompt:
    """The prompt of a table of a TOML or JSON file. Raises `UserError` naming `where` for an invalid value."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        setting = TABLE_KEYS.get(key)
        if setting is None:
            nearest = nearest_name(key, TABLE_KEYS)
            meant = "" if nearest is None else f"; did you mean {nearest}?"
            logger.warning("%s: %s is not a key of a prompt and is ignored%s", where, key, meant)
        elif isinstance(value, (bool, list, dict)):
            raise UserError(f"{where}: {key} is not valid", hint=f"give {setting.expected}")
        elif value is not None:
            values[setting.field] = _parsed(setting, str(value), f"{where}: {key} = {value}")
    if "prompt" not in values:
        raise UserError(f"{where} has no prompt", hint='give it a text: prompt = "a cat"')
    return _with_image(SamplePrompt(index=index, **values), values, where)


def _with_image(prompt: SamplePrompt, given: Mapping[str, Any], where: str) -> SamplePrompt:
    """The prompt, of its image's size where it gives none. Raises `UserError` for files that cannot be read."""
    if prompt.image is None:
        if prompt.mask is not None:
            raise UserError(f"{where}: the mask {prompt.mask} is of no image", hint="give the image too: --i FILE")
        return prompt
    size = _size_of(prompt.image, where, "image")
    if not {"width", "height"} & given.keys():
        prompt = replace(prompt, width=_size(str(size[0])), height=_size(str(size[1])))
    wanted = (prompt.width, prompt.height)
    sizes = {"image": size, "mask": wanted if prompt.mask is None else _size_of(prompt.mask, where, "mask")}
    for what, found in sizes.items():
        if found != wanted:
            logger.warning(
                "%s: the %s is %dx%d, the sample %dx%d: it is scaled",
                where, what, *found, *wanted,
            )  # fmt: skip
    return prompt


def _size_of(path: str, where: str, what: str) -> tuple[int, int]:
    from library.data.images.image_files import read_size  # Pillow is not for every start

    if not Path(path).is_file():
        shown, hint = no_such_path(path, "check the path")
        raise UserError(f"{where}: {what} {shown}: there is no such file", hint)
    try:
        return read_size(path)
    except UserError as error:
        raise UserError(f"{where}: {error.message}", error.hint) from error


def _parsed(setting: _Setting, text: str, what: str) -> object:
    try:
        return setting.parse(text)
    except ValueError:
        raise UserError(f"{what} is not valid", hint=f"give {setting.expected}") from None
