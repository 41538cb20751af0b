"""`--optimizer_args key=value ...`: values as Python writes them. Imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any

from library.cli.errors import UserError, nearest_name, raise_together

RATE_FLAGS = "--learning_rate, --unet_lr or --text_encoder_lr"


def argument_problems(arguments: Sequence[str]) -> list[UserError]:
    """What is wrong with the arguments, whatever the optimizer."""
    problems, keys = [], set()
    for argument in arguments:
        try:
            key, _ = _parse(argument)
        except UserError as error:
            problems.append(error)
            continue
        if key in keys:
            problems.append(UserError(f"--optimizer_args has {key} twice", hint="keep one of them"))
        if key == "lr":
            message = f"--optimizer_args {argument} is a learning rate"
            problems.append(UserError(message, hint=f"give it as {RATE_FLAGS}"))
        keys.add(key)
    return problems


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments by name; values are Python literals: numbers, True, None, texts in quotes, `.9,.999` a tuple.

    Raises `UserError` with everything that is wrong.
    """
    raise_together(argument_problems(arguments))
    return dict(_parse(argument) for argument in arguments)


def _parse(argument: str) -> tuple[str, Any]:
    key, separator, text = (part.strip() for part in argument.partition("="))
    if not separator or not key.isidentifier():
        raise UserError(f"--optimizer_args {argument} is not key=value", hint="write it as weight_decay=0.01")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        meant = {"true": "True", "false": "False", "none": "None"}.get(text.lower())
        hint = f"write {key}={meant}" if meant else "write numbers, 0.9,0.999 for several, True, False, None or 'text'"
        raise UserError(f"--optimizer_args {argument}: {text!r} is no value", hint=hint) from None


def unknown_arguments(given: Iterable[str], valid: Sequence[str], optimizer: str) -> list[UserError]:
    """An error for each argument that the optimizer does not take."""
    problems = []
    for key in given:
        if key not in valid:
            nearest = nearest_name(key, valid)
            meant = f"did you mean {nearest}? " if nearest else ""
            problems.append(
                UserError(
                    f"--optimizer_args {key}: {optimizer} has no such argument",
                    hint=f"{meant}it takes {', '.join(valid)}",
                )
            )
    return problems
