"""The optimizers that have a name, and how any other is named. A new one is a row of `OPTIMIZERS`.

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

# flags that are older than --optimizer_type, and the optimizer each stands for
ALIASES = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}


class LRSupport(Enum):
    """Which learning rates of several groups an optimizer can honour."""

    ANY = auto()
    SAME_OR_ZERO = auto()  # it finds one step size for all, and leaves groups of rate 0 alone
    SAME = auto()  # it applies one rate to every group


@dataclass(frozen=True)
class OptimizerRow:
    """Where an optimizer comes from, and what is special about it."""

    path: str  # module.Class
    package: str | None  # what pip installs; None when it is not known
    added: Mapping[str, Any] = field(default_factory=dict)  # arguments it needs, unless --optimizer_args has them
    rates: LRSupport = LRSupport.ANY
    own_rate: str | None = None  # the argument that makes it set its rate itself
    starts_at_zero: bool = True  # can take a first step of rate 0, as a warm-up gives

    @property
    def adapts(self) -> bool:
        """It finds the step size itself; the learning rate is a factor near 1 of what it finds."""
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
    "LBFGS": "computes the loss several times a step, which this training does not do",
    "SparseAdam": "takes sparse gradients only, which nothing here has",
}

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def find_optimizer(name: str) -> OptimizerRow | None:
    """The row of a name: of the table or a class of `torch.optim`, in any case of letters, or `module.Class`.

    None for a name that is none of these. Whether the class of another package's path exists is not looked at.
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
    """What can be said against `--optimizer_type` without importing the optimizer."""
    row = find_optimizer(name)
    last = "" if row is None else row.path.rpartition(".")[2]
    if row is None:
        known = {word.lower(): word for word in (*torch_names(), *OPTIMIZERS)}
        nearest = nearest_name(name.removeprefix("torch.optim.").lower(), known)
        names = f"give one of {', '.join(OPTIMIZERS)}, a class of torch.optim, or module.Class"
        hint = f"did you mean {known[nearest]}?" if nearest else names
        yield UserError(f"--optimizer_type {name} is not known", hint=hint)
    elif not is_installed(row) and row.package is None:
        # no pip install of what may be a slip: a stranger's package could bear that name
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
    """A class keeps what the table knows of it when it is given by its path."""
    top, last = path.split(".")[0], path.split(".")[-1]
    for row in OPTIMIZERS.values():
        is_known = (row.path.split(".")[0], row.path.split(".")[-1]) == (top, last)
        if is_known and (row.adapts or row.own_rate):
            return row
    packages = {row.path.split(".")[0]: row.package for row in OPTIMIZERS.values()}
    return OptimizerRow(path, packages.get(top))


def averages_itself(name: str) -> bool:
    """Whether the optimizer of that name is a schedule-free one: its result is an average of its steps."""
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
    """Whether the package of an optimizer is there; only looks, imports nothing."""
    try:
        return importlib.util.find_spec(row.path.split(".")[0]) is not None
    except (ValueError, ImportError):
        return False
