"""Files of prompts: one a line (.txt), or as tables (.toml, .json); read again when they change during a run."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from library.cli.documents import parse_json, parse_toml, read_text
from library.cli.errors import UserError, listed, plural, raise_together
from library.training.evaluation.prompts import SamplePrompt, parse_prompt_line, parse_prompt_table

logger = logging.getLogger(__name__)

FLAG = "--sample_prompts"
_ENDINGS = (".txt", ".toml", ".json")


def read_prompt_file(path: str) -> list[SamplePrompt]:
    """The prompts of a file. Raises `UserError` for one without any and, together, for every prompt that is wrong."""
    prompts, errors = parse_prompt_file(path)
    raise_together(errors)
    return prompts


def parse_prompt_file(path: str) -> tuple[list[SamplePrompt], list[UserError]]:
    """The prompts of a UTF-8 file, and an error for each that is wrong.

    .txt: one prompt a line; empty lines and lines that start with # are ignored. .toml: `[[prompt.subset]]` tables,
    with what they share in `[prompt]`. .json: a list of such tables, or of lines. Raises `UserError` for a file that
    cannot be read or holds no prompt.
    """
    ending = Path(path).suffix.lower()
    if ending not in _ENDINGS:
        kinds = listed(_ENDINGS, len(_ENDINGS))
        raise UserError(f"{FLAG} {path} is none of {kinds}", hint="write one prompt per line in a .txt file")
    text = read_text(path, FLAG, ending)
    if ending == ".txt":
        found = [
            (line.strip(), f"line {number}")
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip() and not line.startswith("#")
        ]
    else:
        found = list(_tables(text, path))
    if not found:
        raise UserError(f"{FLAG} {path} holds no prompt", hint="write one prompt per line")
    prompts, errors = [], []
    for index, (entry, name) in enumerate(found):
        try:
            prompts.append(_prompt(entry, f"{FLAG} {path}, {name}", index))
        except UserError as error:
            errors.append(error)
    return prompts, errors


def _prompt(entry: Any, where: str, index: int) -> SamplePrompt:
    if isinstance(entry, str):
        return parse_prompt_line(entry, where, index)
    if isinstance(entry, dict):
        return parse_prompt_table(entry, where, index)
    raise UserError(f"{where} is neither a text nor a table", hint='write {"prompt": "a cat"}')


def _tables(text: str, path: str) -> Iterable[tuple[Any, str]]:
    """The entries of a TOML or JSON file, each with its name."""
    document = (parse_json if path.lower().endswith(".json") else parse_toml)(text, path, FLAG)
    shared: dict[str, Any] = {}
    if isinstance(document, dict):
        shared = document.get("prompt", document)
        if not isinstance(shared, dict):  # a table with a prompt of its own, or a list of such
            shared = {"subset": shared} if isinstance(shared, list) else document
        entries = shared.get("subset", [shared] if "prompt" in shared else [])
        shared = {} if "subset" not in shared else {key: value for key, value in shared.items() if key != "subset"}
    else:
        entries = document
    if not isinstance(entries, list):
        raise UserError(f"{FLAG} {path} has no list of prompts", hint="give each prompt a [[prompt.subset]] table")
    for number, entry in enumerate(entries, 1):
        yield {**shared, **entry} if isinstance(entry, dict) else entry, f"prompt {number}"


class PromptFile:
    """The prompts of a run, read again when their file has changed."""

    def __init__(self, path: str, prompts: list[SamplePrompt]):
        """`prompts`: what was read from it before the run."""
        self._path = path
        self._prompts = prompts
        self._stamp: tuple[int, int] | None = None

    def prompts(self) -> list[SamplePrompt]:
        """The prompts now. What has become wrong is a warning: a prompt is left out, a file keeps its last prompts."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return self._prompts
        self._stamp = stamp
        try:
            prompts, errors = parse_prompt_file(self._path)
        except UserError as error:
            logger.warning("%s: the prompts read before are used; %s", error.message, error.hint)
            return self._prompts
        for wrong in errors:
            logger.warning("%s: no image is generated for it; %s", wrong.message, wrong.hint)
        if prompts != self._prompts:
            logger.info("%s %s has changed: %s", FLAG, self._path, plural(len(prompts), "prompt"))
        self._prompts = prompts
        return prompts

    def _read_stamp(self) -> tuple[int, int] | None:
        """None where there is no file that could be read again: a pipe is read once."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None
