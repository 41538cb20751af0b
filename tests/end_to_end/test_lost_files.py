"""If these fail, a run ends or learns something else where cached files vanish, or where workers are spawned."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from library.cli.errors import UserError
from tests.end_to_end.runs import assert_same, copy_images, train
from tests.end_to_end.test_lost_work import at_step, lose_worker

STEPS = 4
OPTIONS = {"network_dim": 2, "network_train_unet_only": True, "max_train_steps": STEPS, "logging_dir": None}
ON_DISK = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happens to, with what is learned after each step."""
    folder = tmp_path_factory.mktemp("whole")
    train(copy_images(folder / "data"), folder, save_every_n_steps=1, **OPTIONS)
    return folder


def lose(data: Path, *endings: str) -> None:
    lost = [path for path in data.rglob("*") if path.suffix in endings]
    assert lost
    for path in lost:
        path.unlink()


def test_cache_files_that_vanish_are_made_again_and_change_nothing(data_dir, whole, tmp_path, monkeypatch, caplog):
    """At the second of four steps, in which the five images are used once; captions come from files in each step."""
    at_step(monkeypatch, 2, lambda: lose(data_dir, ".npz"))
    learned = train(data_dir, tmp_path, **OPTIONS, **ON_DISK)
    assert_same(learned, load_file(whole / "run.safetensors"))
    for what in ("latents", "caption"):
        assert f"the cached {what} of " in caplog.text
    assert "during training: encoded again" in caplog.text
    assert list(data_dir.rglob("*_sd.npz"))  # written again for the next run


def test_where_the_images_vanish_too_the_last_whole_step_is_saved_first(data_dir, whole, tmp_path, monkeypatch, caplog):
    at_step(monkeypatch, 3, lambda: lose(data_dir, ".npz", ".png"))
    with pytest.raises(UserError, match="cannot be read"):
        train(data_dir, tmp_path, **OPTIONS, **ON_DISK)
    for name in ("run-step00000002.safetensors", "run-step00000002-state/weights.safetensors"):
        assert_same(load_file(tmp_path / name), load_file(whole / "run-step00000002.safetensors"))
    assert "the run ends after step 2: " in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("spawned")
def test_a_run_with_spawned_workers_saves_when_one_dies_and_resumes_to_the_same_end(
    data_dir, whole, tmp_path, monkeypatch
):
    options = {**OPTIONS, "max_data_loader_n_workers": 2}
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: lose_worker(data_dir))
        with pytest.raises(UserError, match="a process that loads images has died"):
            train(data_dir, tmp_path, **options)
    (state,) = tmp_path.glob("*-state")
    step = int(state.name[8:16])
    assert 1 <= step < STEPS
    assert_same(
        load_file(tmp_path / f"run-step{step:08d}.safetensors"), load_file(whole / f"run-step{step:08d}.safetensors")
    )
    assert_same(train(data_dir, tmp_path, **options, resume=state), load_file(whole / "run.safetensors"))
