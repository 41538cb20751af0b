"""If these fail, a user who stops and resumes a run of the whole model gets another model than without, or the text
encoder learns on after it was told to stop."""

import pytest
import torch

from library.training.checkpoints.states import read_state
from tests.end_to_end.runs import BASE, assert_same, copy_images, logged, train
from tests.end_to_end.whole_models import changed_parts, read_model, train_whole

STEPS = 6  # 5 to the epoch


def assert_same_states(left, right) -> None:
    """Weights, optimizer and schedule, bit for bit."""
    (weights, training), (weights_too, training_too) = (read_state(str(path)) for path in (left, right))
    assert_same(weights, weights_too)
    assert sorted(_flat(training), key=str) == sorted(_flat(training_too), key=str)


def _flat(value, path=()):
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, (*path, key))]
    if isinstance(value, (list, tuple)):
        return [row for index, inner in enumerate(value) for row in _flat(inner, (*path, index))]
    if isinstance(value, torch.Tensor):
        return [(path, value.dtype, value.flatten().view(torch.uint8).numpy().tobytes())]
    return [(path, repr(value))]


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train_db", {"stop_text_encoder_training": 3, "lr_scheduler": "cosine"}),
        ("train_db", {"fused_backward_pass": True, "optimizer_type": "AdaFactor", "max_grad_norm": 0.01}),
        ("train_db", {"stop_text_encoder_training": 3, "fused_backward_pass": True, "gradient_checkpointing": True}),
        ("train_db", {"mixed_precision": "bf16", "full_bf16": True, "stop_text_encoder_training": -1}),
        ("fine_tune", {"train_text_encoder": True, "optimizer_type": "AdamW8bit", "gradient_accumulation_steps": 2}),
        ("fine_tune", {"mixed_precision": "bf16", "save_model_as": "safetensors", "flip_aug": True}),
    ],
    ids=["stop", "fused-adafactor", "fused-stop-checkpointing", "full-bf16", "8bit", "bf16"],
)
def test_resuming_is_exact(script, options, data_dir, tmp_path):
    options = {"max_train_steps": STEPS, "save_every_n_steps": 2, "save_state": True, **options}
    train_whole(script, data_dir, tmp_path / "run0", **options)
    for source, done in enumerate((2, 4)):  # the second resumes what the first has saved, after the stop
        state = tmp_path / f"run{source}" / f"run-step{done:08d}-state"
        train_whole(script, data_dir, tmp_path / f"run{source + 1}", resume=state, **options)
    assert_same_states(tmp_path / "run0" / "run-state", tmp_path / "run2" / "run-state")
    name = "run.safetensors" if "save_model_as" in options else "run"
    through, resumed = (read_model(tmp_path / folder / name) for folder in ("run0", "run2"))
    assert changed_parts(through, resumed) == set()
    assert "unet" in changed_parts(through, read_model(BASE))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer_type": "AdamW", "optimizer_args": "weight_decay=0.1"},
        {"optimizer_type": "SGDNesterov", "learning_rate": 1e-2},
        {"optimizer_type": "AdaFactor"},
        {"optimizer_type": "AdaFactor", "fused_backward_pass": True},
    ],
    ids=["decay", "momentum", "adafactor", "fused"],
)
def test_a_stopped_text_encoder_is_bit_identical_from_then_on(optimizer, data_dir, tmp_path):
    options = {"save_every_n_steps": 1, "max_train_steps": 4, **optimizer}
    train_whole("train_db", data_dir, tmp_path / "out", stop_text_encoder_training=2, **options)
    train_whole("train_db", data_dir, tmp_path / "through", **options)
    steps = [read_model(tmp_path / "out" / f"run-step{step:08d}") for step in (1, 2, 3, 4)]
    both, unet = {"unet", "text_encoder"}, {"unet"}
    assert [changed_parts(*pair) for pair in zip(steps, steps[1:], strict=False)] == [both, unet, unet]
    # until then it learned what it would have learned anyway, and it would have gone on
    assert changed_parts(steps[1], read_model(tmp_path / "through" / "run-step00000002")) == set()
    assert changed_parts(steps[3], read_model(tmp_path / "through" / "run-step00000004")) == both


@pytest.mark.parametrize("stop", [0, -1])
def test_a_text_encoder_stopped_from_the_start_is_saved_as_it_was(stop, data_dir, tmp_path):
    train_whole("train_db", data_dir, tmp_path / "out", stop_text_encoder_training=stop, save_state=True)
    assert changed_parts(read_model(tmp_path / "out" / "run"), read_model(BASE)) == {"unet"}
    weights, _ = read_state(str(tmp_path / "out" / "run-state"))
    assert {name.split(".")[0] for name in weights} == ({"unet", "text_encoder"} if stop == 0 else {"unet"})


def test_both_scripts_learn_the_same_from_the_same_images(data_dir, tmp_path):
    train_whole("train_db", data_dir, tmp_path / "folders")
    train_whole("fine_tune", data_dir, tmp_path / "metadata", train_text_encoder=True)
    assert changed_parts(*(read_model(tmp_path / name / "run") for name in ("folders", "metadata"))) == set()


@pytest.mark.parametrize("optimizer", ["AdamW", "AdaFactor"])
def test_steps_in_the_backward_pass_are_the_usual_steps(optimizer, data_dir, tmp_path):
    options = {"optimizer_type": optimizer, "max_grad_norm": 0, "lr_scheduler": "cosine", "save_state": True}
    for name, is_fused in (("usual", False), ("fused", True)):
        logs = {"logging_dir": tmp_path / name / "logs"}
        train_whole("train_db", data_dir, tmp_path / name, fused_backward_pass=is_fused, **logs, **options)
    assert_same_states(tmp_path / "usual" / "run-state", tmp_path / "fused" / "run-state")
    for curve in ("loss/current", "lr/unet", "lr/textencoder"):
        assert logged(tmp_path / "usual", curve) == logged(tmp_path / "fused", curve) != []


def test_adapters_can_step_in_the_backward_pass_too(data_dir, tmp_path):
    options = {"max_grad_norm": 0, "max_train_steps": 3}
    usual = train(data_dir, tmp_path / "usual", **options)
    assert_same(usual, train(data_dir, tmp_path / "fused", fused_backward_pass=True, **options))


def test_caches_and_workers_change_nothing(tmp_path):
    data = copy_images(tmp_path / "data")
    train_whole("train_db", data, tmp_path / "plain")
    train_whole("train_db", data, tmp_path / "cached", cache_latents_to_disk=True, max_data_loader_n_workers=2)
    assert changed_parts(*(read_model(tmp_path / name / "run") for name in ("plain", "cached"))) == set()
