"""Training on tar shards: the weights of the same images in a folder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file

import train_network
from library.cli.errors import UserError
from tests.end_to_end.launches import TWO_PROCESSES, ended, launch, start
from tests.end_to_end.runs import arguments, assert_same, logged, train
from tests.end_to_end.test_lost_work import at_step

LONG_AGO = 10**9
OF_FOLDER = {"max_train_steps": 4, "flip_aug": True, "shuffle_caption": True}


@pytest.fixture
def shards(data_dir: Path, tmp_path: Path) -> Path:
    """The images of `data_dir` in two shards, in its order."""
    files = sorted((data_dir / "2_shs fox").iterdir())
    for name, part in (("0.tar", files[:4]), ("1.tar", files[4:])):
        path = tmp_path / "shards" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for file in part:
                archive.add(file, file.name)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return tmp_path / "shards"


def of_shards(shards: Path) -> dict:
    return OF_FOLDER | {"train_data_dir": None, "shards": shards / "{0..1}.tar", "dataset_repeats": 2}


def test_shards_train_the_weights_of_the_folder_and_resume_to_the_bit(data_dir, shards, tmp_path) -> None:
    from_folder = train(data_dir, tmp_path / "folder", **OF_FOLDER)
    whole = train(data_dir, tmp_path / "whole", **of_shards(shards), max_data_loader_n_workers=2)
    assert_same(whole, from_folder)
    assert logged(tmp_path / "whole") == logged(tmp_path / "folder")
    train(data_dir, tmp_path / "part", **(of_shards(shards) | {"max_train_steps": 2}), save_state=True)
    state = tmp_path / "part" / "run-state"
    resumed = train(data_dir, tmp_path / "resumed", **of_shards(shards), resume=state, cache_latents_to_disk=True)
    assert_same(resumed, from_folder)
    kept = [f"{number}.tar{ending}" for number in (0, 1) for ending in ("", ".index.json", "_sd_latents.safetensors")]
    assert sorted(path.name for path in shards.iterdir()) == sorted(kept)


def test_a_shard_that_is_gone_from_its_store_ends_a_run_that_saves_first(
    data_dir, shards, tmp_path, monkeypatch
) -> None:
    store = fsspec.filesystem("memory")
    for path in shards.iterdir():
        store.pipe(f"/{path.name}", path.read_bytes())
    options = of_shards(shards) | {"shards": "memory://{0..1}.tar", "save_every_n_steps": 2}
    train(data_dir, tmp_path / "whole", **options)
    at_step(monkeypatch, 3, lambda: store.rm(["/0.tar", "/1.tar"]))
    with pytest.raises(UserError, match=r"^shard memory://[01].tar does not exist") as caught:
        train(data_dir, tmp_path / "gone", **options)
    assert caught.value.hint
    name = "run-step00000002"
    assert_same(*(load_file(tmp_path / run / f"{name}.safetensors") for run in ("gone", "whole")))
    assert (tmp_path / "gone" / f"{name}-state" / "state.json").exists()


@pytest.mark.slow
def test_two_processes_train_on_shards_what_one_does_with_twice_the_accumulation(data_dir, shards, tmp_path) -> None:
    """Indexes and caches are made by both; a resumed run learns the same to the bit."""
    options = of_shards(shards) | {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
    options |= {"network_train_unet_only": True, "shuffle_caption": None, "train_batch_size": 1, "max_train_steps": 5}
    one = train(data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    made = {path.name for path in shards.iterdir()}
    for name in made - {"0.tar", "1.tar"}:
        (shards / name).unlink()
    options |= {"save_every_n_steps": 3, "save_state": True}
    launch(arguments(data_dir, tmp_path / "two", **options), *TWO_PROCESSES)
    assert {path.name for path in shards.iterdir()} == made
    two = load_file(tmp_path / "two" / "run.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_up" in name) > 1e-3
    state = tmp_path / "two" / "run-step00000003-state"
    launch(arguments(data_dir, tmp_path / "resumed", **options, resume=state), *TWO_PROCESSES)
    assert_same(load_file(tmp_path / "resumed" / "run.safetensors"), two)

    os.truncate(shards / "1.tar", (shards / "1.tar").stat().st_size // 2)
    process = start(arguments(data_dir, tmp_path / "damaged", **options), *TWO_PROCESSES)
    said = ended(process)
    assert process.returncode != 0 and f"error: shard {shards}/1.tar is truncated" in said


@pytest.mark.slow
@pytest.mark.usefixtures("spawned")
def test_spawned_workers_read_shards_as_the_main_process_does(data_dir, shards, tmp_path) -> None:
    options = of_shards(shards) | {"shards": f"file://{shards}/{{0..1}}.tar", "shard_cache_dir": tmp_path / "caches"}
    alone = train(data_dir, tmp_path / "alone", **options)
    assert_same(train(data_dir, tmp_path / "workers", **options, max_data_loader_n_workers=2), alone)


def test_the_page_of_a_dataset_shows_the_images_of_shards(data_dir, shards, tmp_path) -> None:
    options = of_shards(shards) | {"debug_dataset": True, "debug_dataset_dir": tmp_path / "page"}
    train_network.train(arguments(data_dir, tmp_path / "none", **options))
    (file,) = (tmp_path / "page").glob("*.html")
    text = file.read_text(encoding="utf-8")
    assert text.count("data:image/") >= 5 and "{0..1}.tar" in text
