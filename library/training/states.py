"""States: everything a run needs to go on, bit for bit, in a folder that is complete or absent.

    <name>-state/
      state.json            format, position, seed, what the state belongs to; written last
      weights.safetensors   what learns, exactly
      training.pt           optimizer, LR schedule, gradient scaler, loss average; read with weights_only=True

No generator is stored: randomness is keyed by position (see library/data/randomness.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.cli.atomic_files import atomic_folder, restore_folder
from library.cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from library.training.train_plan import Position

FORMAT = 1
ANOTHER = "resume from another state"


@dataclass(frozen=True)
class StateHeader:
    """`state.json`: where the run was, and what must be the same to go on."""

    epoch: int
    step_in_epoch: int
    global_step: int
    seed: int
    num_micro_batches: int
    group_size: int
    format: int = FORMAT


def read_state_header(folder: str) -> StateHeader:
    """Reads `state.json`. Raises `UserError` for a folder that is no complete state. Imports no torch."""
    path = Path(folder)
    restore_folder(path)
    if not path.is_dir():
        raise UserError(f"--resume {folder} is not a folder", hint="give a state folder, such as <name>-000004-state")
    try:
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        header = StateHeader(**facts)
    except FileNotFoundError:
        raise UserError(
            f"--resume {folder} holds no state.json", hint="give a folder that --save_state has written"
        ) from None
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"--resume {folder}: state.json is damaged: {error}", hint=ANOTHER) from None
    if header.format != FORMAT:
        raise UserError(f"--resume {folder} has format {header.format}, not {FORMAT}", hint=ANOTHER)
    for name in ("weights.safetensors", "training.pt"):
        if not (path / name).is_file():
            raise UserError(f"--resume {folder} lacks {name}", hint=ANOTHER)
    return header


def write_state(
    folder: Path, header: StateHeader, weights: dict[str, torch.Tensor], training: dict[str, Any]
) -> None:
    """Writes a state under a temporary name and renames it whole; an older one of the same name is replaced.

    Raises `OSError` when it cannot be written, and leaves nothing of it then.
    """
    with atomic_folder(folder) as temporary:
        _write_files(temporary, header, weights, training)


def _write_files(
    folder: Path, header: StateHeader, weights: dict[str, torch.Tensor], training: dict[str, Any]
) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        save_file(on_cpu, folder / "weights.safetensors")
        torch.save(training, folder / "training.pt")
    except (SafetensorError, RuntimeError) as error:  # what they make of a full disk
        raise OSError(str(error).splitlines()[0]) from error
    (folder / "state.json").write_text(json.dumps(asdict(header), indent=2), encoding="utf-8")


def read_state(folder: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and training state of a state folder. Raises `UserError` naming the damaged file."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder)
    try:
        weights = load_file(path / "weights.safetensors")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path / 'weights.safetensors'} is damaged: {error}", hint=ANOTHER) from None
    try:
        training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path / 'training.pt'} is damaged: {reason}", hint=ANOTHER) from None
    return weights, training


def header_at(position: Position, *, seed: int, num_micro_batches: int, group_size: int) -> StateHeader:
    """The header of a state at `position`."""
    return StateHeader(
        epoch=position.epoch,
        step_in_epoch=position.step_in_epoch,
        global_step=position.global_step,
        seed=seed,
        num_micro_batches=num_micro_batches,
        group_size=group_size,
    )
