"""Names that users' files and commands hold and that are no options here: what becomes of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from library.cli.errors import UserError


@dataclass(frozen=True)
class ForeignOptions:
    """What is known of the options of other programs. A script's own options are looked for first.

    `unused`: names that a `--config_file` may hold, without effect. `renamed`: names that are carried out as the option
    of another name. `arguments`: those that are carried out as `name=value` in a list option. `families`: names that
    say which model families a file can be for. `meanings`: options that do the work of a name, the likeliest first;
    hints, where such an option exists.
    """

    unused: Collection[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    meanings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Whether it is an option of some other program of the field."""
        return any(name in names for names in (self.unused, self.renamed, self.arguments, self.families))

    def instead_of(self, name: str, options: Collection[str]) -> str | None:
        """The one of the `options` that does what `name` says."""
        likely = (*self.meanings.get(name, ()), self.renamed.get(name))
        return next((option for option in likely if option in options), None)

    def family_of(self, names: Collection[str]) -> str:
        """The model family that has all of the `names`, of `families`; several where they do not tell."""
        sets = [self.families[name] for name in names]
        fitting = [family for family in sets[0] if all(family in each for each in sets)]
        return " or ".join(fitting or dict.fromkeys(family for each in sets for family in each))


class OtherFamily(UserError):
    """The model or the file is of a model family that is not trained here: other errors beside it would mislead."""


def says_something(value: object) -> bool:
    """Whether a value of an option of another program asks for anything: it is not 0, false, "", "none" or empty."""
    return bool(value) and str(value).lower() not in ("none", "null", "false", "0", "0.0")
