"""If these fail, a real run follows another curve than its options say, above all when it is resumed."""

import math

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_network
from tests.end_to_end.launches import launch
from tests.end_to_end.runs import arguments, assert_same, copy_images, logged, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


def test_a_resumed_run_keeps_the_curve_that_its_log_shows(data, tmp_path):
    """Also: accumulation neither stretches nor shrinks it, and each part has its own rate."""
    options = {
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine_with_min_lr",
        "lr_scheduler_min_lr_ratio": 0.1,
        "lr_warmup_steps": "25%",
        "unet_lr": 1e-3,
        "text_encoder_lr": 1e-4,
        "save_state": True,
        "save_every_n_steps": 5,
    }
    whole = train(data, tmp_path / "whole", **options)
    state = tmp_path / "whole" / "run-step00000005-state"
    resumed = train(data, tmp_path / "resumed", **options, resume=state)
    assert_same(whole, resumed)

    factors = [0, 0.5, *(0.1 + 0.9 * math.cos(math.pi * step / 12) ** 2 for step in range(6))]
    for part, rate in (("unet", 1e-3), ("textencoder", 1e-4)):
        rows = logged(tmp_path / "whole", f"lr/{part}")
        assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [value for _, value in rows] == pytest.approx([rate * factor for factor in factors], rel=1e-6)
        assert logged(tmp_path / "resumed", f"lr/{part}") == rows[5:]


def test_a_class_that_changes_more_than_the_rate_resumes_bit_for_bit(data, tmp_path):
    """OneCycleLR moves the optimizer's betas too."""

    def run(name, **overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        argv = arguments(data, tmp_path / name, lr_scheduler_type="OneCycleLR", **overrides)
        train_network.train([*argv, "--lr_scheduler_args", "max_lr=0.01", "total_steps=9"])
        return load_file(tmp_path / name / "run.safetensors")

    whole = run("whole", save_state=True, save_every_n_steps=3)
    resumed = run("resumed", resume=tmp_path / "whole" / "run-step00000003-state")
    assert_same(whole, resumed)
    rows = logged(tmp_path / "whole", "lr/unet")
    assert rows[0] == (1, pytest.approx(0.01 / 25)) and len(rows) == 8
    assert logged(tmp_path / "resumed", "lr/unet") == rows[3:]


@pytest.mark.slow
def test_two_processes_follow_the_same_curve(data, tmp_path):
    """A schedule that every process steps would be over in half the steps."""
    argv = arguments(data, tmp_path, lr_scheduler="cosine", lr_warmup_steps=2, max_train_steps=6)
    launch(
        argv, "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no",
    )  # fmt: skip
    factors = [0, 0.5, *(math.cos(math.pi * step / 8) ** 2 for step in range(4))]
    assert logged(tmp_path, "lr/unet") == [
        (step, pytest.approx(1e-3 * factor, rel=1e-6)) for step, factor in enumerate(factors, start=1)
    ]
