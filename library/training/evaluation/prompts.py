"""Prompt files: one prompt per line, with options after ` --`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.cli.errors import UserError, raise_together
from library.training.evaluation.samplers import SAMPLER_NAMES, sampler_row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplePrompt:
    """One sample image. `seed` None: derived from the run's seed and the prompt's position in the file."""

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    sample_steps: int = 30
    scale: float = 7.5
    seed: int | None = None
    sampler: str | None = None


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
    if text not in SAMPLER_NAMES:
        raise ValueError(text)
    return sampler_row(text)


# letter(s) of an option -> field, parser, what is expected
PROMPT_OPTIONS: dict[str, tuple[str, Callable[[str], object], str]] = {
    "n": ("negative_prompt", str, "a text"),
    "w": ("width", _size, "a whole number"),
    "h": ("height", _size, "a whole number"),
    "d": ("seed", _seed, "a whole number below 2^64, or -1 for none"),
    "s": ("sample_steps", _steps, "a whole number"),
    "l": ("scale", _scale, "a number"),
    "ss": ("sampler", _sampler, f"one of {', '.join(SAMPLER_NAMES)}"),
}


def parse_prompt_line(line: str, where: str) -> SamplePrompt:
    """Parses one line. Raises `UserError` naming `where`, the file and line, for an invalid value."""
    prompt, *parts = line.split(" --")
    values: dict[str, Any] = {}
    for part in parts:
        letter, _, text = part.strip().partition(" ")
        known = PROMPT_OPTIONS.get(letter.lower())
        if known is None:
            logger.warning("%s: --%s is not a prompt option and is ignored", where, letter)
            continue
        name, parse, expected = known
        try:
            values[name] = parse(text.strip())
        except ValueError:
            raise UserError(f"{where}: --{letter} {text.strip()} is not valid", hint=f"give {expected}") from None
    return SamplePrompt(prompt.strip(), **values)


def read_prompt_file(path: str) -> list[SamplePrompt]:
    """The prompts of a UTF-8 text file; empty lines and lines that start with # are ignored.

    Raises `UserError` for a missing, empty or unreadable file and, together, for every line that is wrong.
    """
    file = Path(path)
    if file.suffix.lower() != ".txt":
        raise UserError(f"--sample_prompts {path} is not a .txt file", hint="write one prompt per line in a .txt file")
    if not file.is_file():
        raise UserError(f"--sample_prompts {path} does not exist", hint="give the path of a text file of prompts")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        problem = f"--sample_prompts {path} is not UTF-8 text: byte {error.start}"
        raise UserError(problem, hint="save it as UTF-8") from None
    prompts, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            prompts.append(parse_prompt_line(line.strip(), f"--sample_prompts {path}, line {number}"))
        except UserError as error:
            problems.append(error)
    raise_together(problems)
    if not prompts:
        raise UserError(f"--sample_prompts {path} holds no prompt", hint="write one prompt per line")
    return prompts
