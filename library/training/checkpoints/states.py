"""States: everything that resuming bit for bit needs, in a folder that is complete or absent.

    <name>-state/
      weights.safetensors   the trained weights, exactly
      training.pt           optimizer, LR schedule, gradient scaler, EMA, losses; read with weights_only=True
      state.json            format, position, seed, identity of the run, and the size and SHA-256 of the other
                            files; written last

No generator state is stored: random numbers are keyed by position (see library/data/randomness.py).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.cli.atomic_files import atomic_folder, restore_folder
from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError, first_line, listed
from library.cli.file_hashes import file_sha256

if TYPE_CHECKING:
    import torch

    from library.training.step_plan import Position

FORMAT = 2
HEADER, WEIGHTS, TRAINING = "state.json", "weights.safetensors", "training.pt"
ANOTHER = "resume from another state"
_PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "safetensors", "bitsandbytes", "numpy")


@dataclass(frozen=True)
class RunIdentity:
    """Which run a state belongs to: the same in all states of a run."""

    seed: int
    num_micro_batches: int  # per epoch
    group_size: int  # micro-batches per optimizer step
    optimizer: str = ""  # class
    lr_schedule: str = ""  # kind
    data: str = ""  # digest of images and captions
    options: Mapping[str, Any] | None = None  # by name

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that compute."""
        return {"python": platform.python_version(), **dict(_installed())}


def _installed() -> Iterator[tuple[str, str]]:
    import importlib.metadata  # it is not for --help

    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


@dataclass(frozen=True)
class StateHeader:
    """`state.json`: the position in the run, and what must be the same to resume."""

    format: int
    epoch: int
    step_in_epoch: int
    global_step: int
    is_epoch_end_due: bool  # as the position has it; absent, and so false, in older states
    seed: int
    num_micro_batches: int
    group_size: int
    optimizer: str
    lr_schedule: str
    data: str
    options: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]  # {"size": bytes, "sha256": hexadecimal digits} by name


def read_state_header(folder: str | Path) -> StateHeader:
    """Reads `state.json`. Raises `UserError` for a folder that is not a complete state. Imports no torch."""
    path = Path(os.path.abspath(folder))  # a name for ".", too
    restore_folder(path)
    if not path.is_dir():
        raise UserError(f"--resume {folder} is not a folder", hint="give a state folder, such as <name>-000004-state")
    try:
        facts = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--resume {folder} holds no {HEADER}", hint=_states_inside(path)) from None
    except OSError as error:
        raise UserError(f"--resume {folder}: {HEADER} cannot be read: {error.strerror}", hint=ANOTHER) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--resume {folder}: {HEADER} is damaged: {error}", hint=ANOTHER) from None
    return _checked_header(facts, folder)


def _states_inside(folder: Path) -> str:
    """What to do where a folder is no state: the newest states in it are named."""
    inside = sorted(folder.glob(f"*/{HEADER}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if not inside:
        return "give a folder that --save_state has written"
    return f"give one of the states in it: {listed([str(path.parent) for path in inside], 3)}"


_KINDS = {"int": int, "str": str, "bool": bool}


def _checked_header(facts: Any, folder: str | Path) -> StateHeader:
    damaged = f"--resume {folder}: {HEADER} is damaged"
    if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
        raise UserError(f"{damaged}: it has no format", hint=ANOTHER)
    if facts["format"] != FORMAT:
        raise UserError(f"--resume {folder} has format {facts['format']}, not {FORMAT}", hint=ANOTHER)
    facts = {"is_epoch_end_due": False, **facts}
    for field in fields(StateHeader):
        kind = _KINDS.get(str(field.type), dict)
        if type(facts.get(field.name)) is not kind or (kind is int and facts[field.name] < 0):
            raise UserError(f"{damaged}: {field.name} is missing or wrong", hint=ANOTHER)
    files = facts["files"]
    if set(files) != {WEIGHTS, TRAINING} or not all(_is_file_entry(entry) for entry in files.values()):
        raise UserError(f"{damaged}: files is wrong", hint=ANOTHER)
    return StateHeader(**{field.name: facts[field.name] for field in fields(StateHeader)})


def _is_file_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)


def check_files(folder: str | Path, header: StateHeader) -> None:
    """Raises `UserError` naming a file that is missing or damaged."""
    for name, entry in header.files.items():
        path = Path(folder) / name
        try:
            size = path.stat().st_size
            is_whole = size == entry["size"] and file_sha256(path) == entry["sha256"]
        except FileNotFoundError:
            raise UserError(f"--resume {folder} lacks {name}", hint=ANOTHER) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", hint=ANOTHER) from None
        if not is_whole:
            what = f"{size} bytes instead of {entry['size']}" if size != entry["size"] else "its checksum differs"
            raise UserError(f"{path} is damaged: {what}", hint=ANOTHER)


def write_state(
    folder: Path, position: Position, facts: RunIdentity, weights: dict[str, torch.Tensor], training: dict[str, Any]
) -> None:
    """Writes a state under a temporary name and renames it when complete; replaces an older one of the same name.

    Raises `OSError` when it cannot be written, and leaves no partial state.
    """
    with atomic_folder(folder) as temporary:
        _write_files(temporary, weights, training)
        written = {
            name: {"size": (temporary / name).stat().st_size, "sha256": file_sha256(temporary / name)}
            for name in (WEIGHTS, TRAINING)
        }
        header = StateHeader(
            format=FORMAT,
            **asdict(position),
            seed=facts.seed,
            num_micro_batches=facts.num_micro_batches,
            group_size=facts.group_size,
            optimizer=facts.optimizer,
            lr_schedule=facts.lr_schedule,
            data=facts.data,
            options=dict(facts.options or {}),
            versions=facts.versions,
            files=written,
        )
        (temporary / HEADER).write_text(json.dumps(asdict(header), indent=2), encoding="utf-8")


def _write_files(folder: Path, weights: dict[str, torch.Tensor], training: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    from library.models.weights.weight_writing import write_errors

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with write_errors():
        save_file(on_cpu, folder / WEIGHTS)
        torch.save(training, folder / TRAINING)


def read_state(folder: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the training state in a state folder. Raises `UserError` naming a damaged file."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder)
    try:
        weights = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path / WEIGHTS} is damaged: {error}", hint=ANOTHER) from None
    try:
        training = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
    except DAMAGED_FILE_ERRORS as error:
        raise UserError(f"{path / TRAINING} is damaged: {first_line(error)}", hint=ANOTHER) from None
    return weights, training
