"""If these fail, the GPU stands idle in each step, while the host waits for a value that it could have left there."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

import train_db
import train_leco
import train_network
import train_textual_inversion
from library.training.context import TrainingScript
from library.training.loop.step import make_step
from library.training.model_setup import attach_method, load_model
from library.training.run_setup import set_up_run
from library.training.script import check_command
from tests.end_to_end.concept_runs import argv_of
from tests.end_to_end.runs import BASE, arguments, copy_images
from tests.fake_device import DEVICE, device_reads

NUM_STEPS = 2


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return copy_images(tmp_path_factory.mktemp("data"), 3)


def reads_of_steps(script: TrainingScript, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each step of a run reads from the device. The model is loaded on the CPU, and moved there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    context = check_command(script, argv)
    run, method = set_up_run(context), script.make_method(context.options)
    family = load_model(run, method)
    attach_method(run, method, family)
    with device_reads(monkeypatch) as reads:
        monkeypatch.setattr(Accelerator, "device", DEVICE)
        for module in (family.unet, family.vae, *family.text_encoders, *method.trainable_modules()):
            nn.Module.to(module, DEVICE)
        inputs = context.data.make_inputs(method, family, run.accelerator, run.plan)
        step = make_step(run, method, inputs.objective)
        micro_batches = list(context.data.batches_of_epoch(run.plan.seed, 0))
        batches = inputs.loader.batches(micro_batches)
        rows = []
        for number in range(1, NUM_STEPS + 1):
            before = len(reads)
            step(lambda: [next(batches)], 1, number)
            rows.append(reads[before:])
        assert len(list(step.logged())) == NUM_STEPS  # none was skipped
    return rows


OFFSETS = {
    "noise_offset": 0.1,
    "adaptive_noise_scale": 0.1,
    "noise_offset_random_strength": True,
    "ip_noise_gamma": 0.1,
}
PYRAMID = {"multires_noise_iterations": 6, "multires_noise_discount": 0.3}
LOSS = {"min_snr_gamma": 5, "loss_type": "huber", "huber_schedule": "snr", "debiased_estimation_loss": True}
TEXTS = {"cache_text_encoder_outputs": True, "network_train_unet_only": True}
TOKEN = {"token_string": "<shs>", "init_word": "fox", "use_object_template": True, "xti": True}


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (train_network, {"weighted_captions": True, "max_token_length": 150, "ema": True}),
        (train_network, {"cache_latents": True, **OFFSETS, **LOSS}),
        (train_network, {"cache_latents_to_disk": True, **TEXTS, **PYRAMID}),
        (train_db, {"train_batch_size": 1}),
        (train_textual_inversion, TOKEN),
    ],
    ids=["nothing cached", "latents cached", "all cached", "whole model", "textual inversion"],
)
def test_a_step_waits_for_the_device_once(script, options, data_dir, tmp_path, monkeypatch):
    """To learn whether it is to be applied."""
    rows = reads_of_steps(script.SCRIPT, arguments(data_dir, tmp_path, **options), monkeypatch)
    assert [len(row) for row in rows] == [1] * NUM_STEPS, rows


def test_a_fused_backward_pass_waits_before_it_and_after_it_however_many_parameters_there_are(
    data_dir, tmp_path, monkeypatch
):
    """Before it, since a loss that is not finite updates nothing."""
    argv = arguments(data_dir, tmp_path, train_batch_size=1, fused_backward_pass=True, cache_latents=True)
    rows = reads_of_steps(train_db.SCRIPT, argv, monkeypatch)
    assert [len(row) for row in rows] == [2] * NUM_STEPS, rows


def test_a_step_that_denoises_waits_once_too(tmp_path, monkeypatch):
    """However many timesteps it denoises: as many waits would leave a GPU idle most of the time."""
    rows = reads_of_steps(train_leco.SCRIPT, argv_of(tmp_path / "out", BASE, network_dropout=0.1), monkeypatch)
    assert [len(row) for row in rows] == [1] * NUM_STEPS, rows
