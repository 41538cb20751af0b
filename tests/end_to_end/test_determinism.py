"""If these fail, a user who stops, resumes, caches or changes workers gets another model than without."""

import signal
import time

import pytest
import torch

from library.training.checkpoints.states import read_state
from tests.end_to_end.runs import arguments, assert_same, copy_images, logged, start_command, train

AUGMENTED = {"flip_aug": True, "shuffle_caption": True, "network_dropout": 0.1, "noise_offset": 0.05}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An uninterrupted run of 8 steps, 5 to the epoch, with a state after the third."""
    folder = tmp_path_factory.mktemp("plain")
    data = copy_images(folder / "data")
    weights = train(data, folder / "out", save_every_n_steps=3, save_state=True, **AUGMENTED)
    return data, folder / "out", weights


def test_the_same_command_gives_the_same_weights_and_another_seed_does_not(plain, tmp_path):
    data, out, weights = plain
    assert_same(weights, train(data, tmp_path / "again", **AUGMENTED))
    assert logged(out) == logged(tmp_path / "again")
    other = train(data, tmp_path / "other", **AUGMENTED, **{"seed": 8})
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize(
    "loading",
    [
        {"max_data_loader_n_workers": 1},
        {"max_data_loader_n_workers": 2, "persistent_data_loader_workers": True},
        {"cache_latents": True},
        {"cache_latents": True, "max_data_loader_n_workers": 2},
        {"cache_latents_to_disk": True},
        {"cache_latents_to_disk": True, "max_data_loader_n_workers": 1},
    ],
    ids=lambda loading: "-".join(loading),
)
def test_workers_and_caches_change_nothing(plain, tmp_path, loading):
    data, out, weights = plain
    assert_same(weights, train(data, tmp_path / "out", **AUGMENTED, **loading))
    assert logged(tmp_path / "out") == logged(out)
    if "cache_latents_to_disk" in loading:
        assert len(list(data.rglob("*_sd.npz"))) == 5


def test_drawing_samples_changes_nothing(plain, tmp_path):
    data, _, weights = plain
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a shs fox --w 64 --h 64 --s 2\na fox --w 64 --h 72 --s 3 --d 1 --ss euler_a\n")
    sampled = train(
        data, tmp_path / "out", sample_prompts=prompts, sample_at_first=True, sample_every_n_steps=2, **AUGMENTED
    )
    assert_same(weights, sampled)
    assert len(list((tmp_path / "out" / "sample").glob("*_0?_*.png"))) == 2 * 5


def test_resuming_in_the_middle_of_an_epoch_is_exact(plain, tmp_path):
    data, out, weights = plain
    state = out / "run-step00000003-state"
    resumed = train(data, tmp_path / "out", resume=state, save_state=True, **AUGMENTED)
    assert_same(weights, resumed)
    assert logged(tmp_path / "out") == logged(out)[3:]
    assert logged(tmp_path / "out", "loss/average") == logged(out, "loss/average")[3:]
    # what a third run would continue from is the same too
    (weights_then, training_then), (weights_now, training_now) = (
        read_state(str(folder / "run-state")) for folder in (out, tmp_path / "out")
    )
    assert_same(weights_then, weights_now)
    for key, entry in training_then["optimizer"]["state"].items():
        assert_same(entry, training_now["optimizer"]["state"][key])


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer_type": "AdamW8bit", "network_dim": 64},
        {"gradient_accumulation_steps": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 2},
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "cache_latents": True},
        {"network_train_unet_only": True, "max_data_loader_n_workers": 2, "max_grad_norm": 0},
    ],
    ids=["8bit", "accumulation", "bf16", "unet-only"],
)
def test_three_resumes_in_a_row_are_exact(data_dir, tmp_path, options):
    options = {"save_every_n_steps": 1, "save_state": True, "max_train_steps": 5, **options}
    through = train(data_dir, tmp_path / "run0", **options)
    for source, done in enumerate((1, 2, 4)):  # each resumes what the one before has saved
        state = tmp_path / f"run{source}" / f"run-step{done:08d}-state"
        resumed = train(data_dir, tmp_path / f"run{source + 1}", resume=state, **options)
    assert_same(through, resumed)
    if "optimizer_type" in options:  # and the state really was kept in 8 bits
        _, training = read_state(str(tmp_path / "run3" / "run-state"))
        states = [entry["__bnb_optimizer_quant_state__"] for entry in training["optimizer"]["state"].values()]
        assert any(state["state1"].dtype == torch.uint8 for state in states)


def test_a_killed_run_continues_to_the_same_weights(plain, tmp_path):
    data, _, weights = plain
    out = tmp_path / "out"
    argv = arguments(data, out, save_every_n_steps=3, save_state=True, **AUGMENTED)
    # it would take far longer than it is given
    process = start_command([*argv, "--max_train_steps", "100000"])
    state = out / "run-step00000003-state"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() and not (out / "run.safetensors").exists()
    assert_same(weights, train(data, out, resume=state, **AUGMENTED))


def test_a_group_that_processes_or_accumulation_share_gives_the_mean_of_its_batches(data_dir, tmp_path):
    """Accumulation 3 over an epoch of 5 batches: the second step is the mean of the two that are left."""
    plain = {"learning_rate": 0.0, "max_train_epochs": 1, "cache_latents": True}
    single = dict(logged_run(data_dir, tmp_path / "single", **plain))
    grouped = dict(logged_run(data_dir, tmp_path / "grouped", gradient_accumulation_steps=3, **plain))
    losses = [single[step] for step in sorted(single)]
    assert len(losses) == 5
    assert list(grouped.values()) == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 2], rel=1e-5)


def logged_run(data, out, **options):
    train(data, out, **options)
    return logged(out)
