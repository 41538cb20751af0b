"""The table of optimizers, and how to find one by name. A new one is a row of `OPTIMIZERS`.

Imports no torch: options are checked with this table.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from library.cli.errors import UserError, nearest_name

DEFAULT = "AdamW"

# older flags, and the --optimizer_type that each is an alias of
ALIASES = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}


class LRSupport(Enum):
    """Which learning rates of several parameter groups an optimizer supports."""

    ANY = auto()
    SAME_OR_ZERO = auto()  # it finds one step size for all groups, and does not update those of learning rate 0
    SAME = auto()  # it applies one learning rate to every group


@dataclass(frozen=True)
class OptimizerRow:
    """An optimizer: its class, its package, and its special properties."""

    path: str  # module.Class
    package: str | None  # to install with pip; None when it is not known
    added: Mapping[str, Any] = field(default_factory=dict)  # default arguments, unless --optimizer_args sets them
    rates: LRSupport = LRSupport.ANY
    own_rate: str | None = None  # the argument with which it sets its own learning rate
    starts_at_zero: bool = True  # supports a first step with learning rate 0, as in a warm-up

    @property
    def adapts(self) -> bool:
        """It estimates the step size itself; the learning rate is a factor of it, usually about 1."""
        return self.rates is not LRSupport.ANY


def _bitsandbytes(name: str, **added: Any) -> OptimizerRow:
    return OptimizerRow(f"bitsandbytes.optim.{name}", "bitsandbytes", added)


def _dadaptation(name: str, rates: LRSupport = LRSupport.SAME_OR_ZERO, **special: Any) -> OptimizerRow:
    return OptimizerRow(f"dadaptation.{name}", "dadaptation", rates=rates, **special)


def _schedule_free(name: str) -> OptimizerRow:
    return OptimizerRow(f"schedulefree.{name}", "schedulefree")


_NESTEROV = {"momentum": 0.9, "nesterov": True}

OPTIMIZERS: Mapping[str, OptimizerRow] = {
    "AdamW": OptimizerRow("torch.optim.AdamW", "torch"),
    "AdamW8bit": _bitsandbytes("AdamW8bit"),
    "PagedAdamW": _bitsandbytes("PagedAdamW"),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit"),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit"),
    "Lion": OptimizerRow("lion_pytorch.Lion", "lion-pytorch"),
    "Lion8bit": _bitsandbytes("Lion8bit"),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit"),
    "SGDNesterov": OptimizerRow("torch.optim.SGD", "torch", _NESTEROV),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", **_NESTEROV),
    "DAdaptation": _dadaptation("DAdaptAdam"),
    "DAdaptAdam": _dadaptation("DAdaptAdam"),
    "DAdaptAdamPreprint": _dadaptation("experimental.dadapt_adam_preprint.DAdaptAdamPreprint"),
    "DAdaptAdaGrad": _dadaptation("DAdaptAdaGrad", LRSupport.SAME),
    "DAdaptAdan": _dadaptation("DAdaptAdan", LRSupport.SAME),
    "DAdaptAdanIP": _dadaptation("experimental.dadapt_adan_ip.DAdaptAdanIP", LRSupport.SAME),
    "DAdaptLion": _dadaptation("DAdaptLion", LRSupport.SAME),
    "DAdaptSGD": _dadaptation("DAdaptSGD", starts_at_zero=False),
    "Prodigy": OptimizerRow("prodigyopt.Prodigy", "prodigyopt", rates=LRSupport.SAME_OR_ZERO),
    "AdaFactor": OptimizerRow(
        "transformers.optimization.Adafactor", "transformers", {"relative_step": True}, own_rate="relative_step"
    ),
    "RAdamScheduleFree": _schedule_free("RAdamScheduleFree"),
    "AdamWScheduleFree": _schedule_free("AdamWScheduleFree"),
    "SGDScheduleFree": _schedule_free("SGDScheduleFree"),
}

# classes of torch.optim that this training cannot use
UNFIT = {
    "LBFGS": "computes the loss several times per step, which is not supported here",
    "SparseAdam": "needs sparse gradients, which no model here has",
}

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def find_optimizer(name: str) -> OptimizerRow | None:
    """The row of a name: one of the table or a class of `torch.optim` (both case-insensitive), or `module.Class`.

    None for any other name. Whether the class of another package exists is not checked.
    """
    rows = {known.lower(): row for known, row in OPTIMIZERS.items()}
    if name.lower() in rows:
        return rows[name.lower()]
    short = name.removeprefix("torch.optim.")
    if "." in short:
        return _row_of_path(name) if _CLASS_PATH.fullmatch(name) else None
    in_torch = {known.lower(): known for known in torch_names()}.get(short.lower())
    return None if in_torch is None else OptimizerRow(f"torch.optim.{in_torch}", "torch")


def name_problems(name: str) -> Iterator[UserError]:
    """Errors in `--optimizer_type` that show without importing the optimizer."""
    row = find_optimizer(name)
    last = "" if row is None else row.path.rpartition(".")[2]
    if row is None:
        known = {word.lower(): word for word in (*torch_names(), *OPTIMIZERS)}
        nearest = nearest_name(name.removeprefix("torch.optim.").lower(), known)
        names = f"give one of {', '.join(OPTIMIZERS)}, a class of torch.optim, or module.Class"
        hint = f"did you mean {known[nearest]}?" if nearest else names
        yield UserError(f"--optimizer_type {name} is not known", hint=hint)
    elif not is_installed(row) and row.package is None:
        # no pip install of what may be a typo: a stranger's package could have that name
        yield UserError(
            f"--optimizer_type {name}: there is no module {row.path.split('.')[0]}",
            hint="check the name, or install the package that it comes from",
        )
    elif not is_installed(row):
        yield UserError(
            f"--optimizer_type {name} needs the package {row.package}, which is not installed",
            hint=f"pip install {row.package}",
        )
    elif row.package == "torch" and last in UNFIT:
        yield UserError(f"--optimizer_type {name} {UNFIT[last]}", hint="choose another optimizer")


def _row_of_path(path: str) -> OptimizerRow:
    """The row of a class given by its path, with the special properties that the table has for it."""
    top, last = path.split(".")[0], path.split(".")[-1]
    for row in OPTIMIZERS.values():
        is_known = (row.path.split(".")[0], row.path.split(".")[-1]) == (top, last)
        if is_known and (row.adapts or row.own_rate):
            return row
    packages = {row.path.split(".")[0]: row.package for row in OPTIMIZERS.values()}
    return OptimizerRow(path, packages.get(top))


def averages_itself(name: str) -> bool:
    """Whether it is a schedule-free optimizer, whose result is already an average of its steps."""
    row = find_optimizer(name)
    return row is not None and row.path.split(".")[0] == "schedulefree"


def torch_names() -> tuple[str, ...]:
    """The optimizer classes of the installed `torch.optim`, read from its source: importing it takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return ()
    source = Path(found.submodule_search_locations[0], "optim", "__init__.py").read_text(encoding="utf-8")
    imported = [
        alias.asname or alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return tuple(name for name in imported if name[0].isupper() and name != "Optimizer")


def is_installed(row: OptimizerRow) -> bool:
    """Whether the package of an optimizer is installed; imports nothing."""
    try:
        return importlib.util.find_spec(row.path.split(".")[0]) is not None
    except (ValueError, ImportError):
        return False
