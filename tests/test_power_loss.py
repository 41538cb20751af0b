"""If these fail, a loss of power while something is saved takes what was saved before with it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from library.cli.atomic_files import remove_whole
from library.data.caches.latent_cache import write_latents
from library.data.caches.text_cache import write_text_outputs
from library.data.records import CachedLatents, LatentKey, Placement
from library.data.scan.scan_index import ScannedImage, write_index
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.checkpoints.pruning import clear_up
from library.training.checkpoints.resuming import newest_state, read_whole_state
from library.training.checkpoints.saved_names import saved_under
from library.training.checkpoints.states import RunIdentity, read_state, write_state
from library.training.step_plan import Position
from networks.adapters.files import save_adapter
from tests.power_loss import PowerLoss, Tree, restore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be flushed there")
BASE = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "base"


def write_lora(folder: Path, version: int) -> None:
    save_adapter(folder / "run.safetensors", {"w": torch.full((64,), float(version))}, torch.float32, {"a": "b"})


def write_pickled_lora(folder: Path, version: int) -> None:
    save_adapter(folder / "run.pt", {"w": torch.full((64,), float(version))})


def write_latent_cache(folder: Path, version: int) -> None:
    key = LatentKey(str(folder / "a.png"), "a.png", (64, 64), 1, Placement((64, 64), (64, 64), (0, 0)), False)
    write_latents({key: CachedLatents(np.full((4, 8, 8), version, dtype=np.float32))}, "vae")


def write_text_cache(folder: Path, version: int) -> None:
    outputs = {"a fox": {"hidden_states": np.full((77, 8), version, dtype=np.float32)}}
    write_text_outputs(folder / "a.png_sd_te.npz", outputs, "encoder")


def write_scan_index(folder: Path, version: int) -> None:
    image = ScannedImage((64, 64), 1, version, 1, None, 0, 0, 0)
    write_index(str(folder), [("a.png", None)], [image], False, scanned_at_ns=10**18)


@pytest.fixture(scope="module")
def family():
    return load_family(ModelOptions(str(BASE)))


def write_model(family, format: str, folder: Path, version: int) -> None:
    family.unet.conv_in.bias.data.fill_(version)
    name = "run.safetensors" if format == "safetensors" else "run"
    family.save(folder / name, format=format, dtype=torch.float16, metadata={})


def contents(folder: Path) -> Tree:
    return {path.name: contents(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


KINDS = {
    "LoRA": write_lora,
    "pickled LoRA": write_pickled_lora,
    "latents": write_latent_cache,
    "text encoder outputs": write_text_cache,
    "scan index": write_scan_index,
    "model in one file": "safetensors",
    "model in a folder": "diffusers_safetensors",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_or_model_is_the_new_one_or_the_one_before(tmp_path, request, kind):
    folder, disk = tmp_path / "output", tmp_path / "disk"
    folder.mkdir()
    write = KINDS[kind]
    if isinstance(write, str):
        model = request.getfixturevalue("family")

        def write(folder, version):
            write_model(model, KINDS[kind], folder, version)

    write(folder, 1)
    before, recorded = contents(folder), PowerLoss(folder)
    with recorded.recording():
        write(folder, 2)
    after = contents(folder)
    assert before != after and len(recorded.outcomes) >= 5
    for tree in recorded.outcomes:
        restore(tree, disk)
        clear_up(disk, "run")  # as the next run does
        visible = {name: each for name, each in contents(disk).items() if not name.startswith(".tmp-")}
        visible = {name: each for name, each in visible.items() if not name.endswith(".tmp")}
        assert visible in (before, after)
        assert visible == after or tree not in recorded.at_end  # once it says that it is saved, it is


def save(folder: Path, step: int) -> None:
    facts = RunIdentity(seed=3, num_micro_batches=7, group_size=2)
    weights, training = {"w": torch.full((2,), float(step))}, {"losses": torch.tensor([0.5, step])}
    write_state(folder, Position(1, step, step), facts, weights, training)


def step_to_resume(folder: Path) -> int:
    found = newest_state(str(folder), "run")
    assert found is not None
    for saved in saved_under(folder, "run"):  # none that is there lacks anything
        read_whole_state(str(saved.path))
    weights, training = read_state(found.folder)
    assert training["losses"][1] == weights["w"][0] == found.position.global_step
    return found.position.global_step


def replace_state(folder: Path) -> None:
    save(folder / "run-state", 2)


def save_next_and_prune(folder: Path) -> None:
    save(folder / "run-step00000002-state", 2)
    remove_whole(folder / "run-state")


@pytest.mark.parametrize("change", [replace_state, save_next_and_prune])
def test_a_run_resumes_from_the_new_state_or_the_one_before(tmp_path, change):
    folder = tmp_path / "output"
    folder.mkdir()
    save(folder / "run-state", 1)
    recorded = PowerLoss(folder)
    with recorded.recording():
        change(folder)
    steps = set()
    for tree in recorded.outcomes:
        restore(tree, tmp_path / "disk")
        step = step_to_resume(tmp_path / "disk")
        assert step == 2 or tree not in recorded.at_end
        steps.add(step)
    assert steps == {1, 2}
