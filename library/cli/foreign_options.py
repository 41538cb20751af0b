"""Options of other training programs in users' files and commands, and how each is handled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from library.cli.errors import UserError


@dataclass(frozen=True)
class ForeignOptions:
    """The known options of other programs. A script's own options take precedence.

    `unused`: names that a `--config_file` may hold, without effect. `renamed`: name -> option of this program.
    `arguments`: names that become `name=value` in a list option. `families`: name -> the model families that have it.
    `meanings`: name -> options with the same purpose, the likeliest first, for hints.
    """

    unused: Collection[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    meanings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Whether it is an option of another training program."""
        return any(name in names for names in (self.unused, self.renamed, self.arguments, self.families))

    def instead_of(self, name: str, options: Collection[str]) -> str | None:
        """The one of the `options` that has the purpose of `name`."""
        likely = (*self.meanings.get(name, ()), self.renamed.get(name))
        return next((option for option in likely if option in options), None)

    def family_of(self, names: Collection[str]) -> str:
        """The model family that has all of the `names`, of `families`; several where that is ambiguous."""
        sets = [self.families[name] for name in names]
        fitting = [family for family in sets[0] if all(family in each for each in sets)]
        return " or ".join(fitting or dict.fromkeys(family for each in sets for family in each))


class OtherFamily(UserError):
    """The model or the file is of an unsupported model family: reported alone, other errors would mislead."""


def says_something(value: object) -> bool:
    """Whether a value of an option of another program asks for anything: it is not 0, false, "", "none" or empty."""
    return bool(value) and str(value).lower() not in ("none", "null", "false", "0", "0.0")
