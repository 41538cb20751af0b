"""The command line of a run as its page shows it: one that repeats the run, without secrets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from library.cli.entry import without_options
from library.cli.options import option_fields, plain_values, secret_flags
from library.cli.parser import ConfigFileOptions, Options
from library.training.context import Context
from library.training.options import TrainingOptions

_SECRET_VARIABLES = ("HF_TOKEN", "WANDB_API_KEY")
_SHORTEST_SECRET = 6  # characters; a shorter one would be found in innocent words


class RunCommand:
    """A command line and what it means."""

    def __init__(self, context: Context, start: Sequence[str], arguments: Sequence[str]):
        """`start`: what launches the script. `arguments`: those of the script."""
        self.program = context.script.program
        self._options = context.options
        self._start, self._arguments = start, arguments
        self._secret_flags = secret_flags(context.script.option_groups)
        values = [*_secret_values(context.options), *(os.environ.get(name, "") for name in _SECRET_VARIABLES)]
        self._secrets = [value for value in values if len(value) >= _SHORTEST_SECRET]

    def words(self, seed: int) -> list[str]:
        """The command that makes the same run from its beginning; a `seed` that was drawn is in it."""
        kept, _ = without_options(
            self._arguments, ("--resume", *self._secret_flags), ("--overwrite", "--resume_from_huggingface")
        )
        drawn = [] if self._options[TrainingOptions].seed is not None else ["--seed", str(seed)]
        return [self.without_secrets(word) for word in [*self._start, self.program, *kept, *drawn]]

    def options(self) -> dict[str, Any]:
        """What is not at its default, by name."""
        left_out = {field.name for field in option_fields(ConfigFileOptions)} | {"resume", "overwrite"}
        return {name: value for name, value in plain_values(self._options).items() if name not in left_out}

    def without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "...")
        return text


def _secret_values(options: Options) -> list[str]:
    return [
        str(getattr(group, field.name) or "")
        for group in options
        for field in option_fields(type(group))
        if field.spec.secret
    ]
