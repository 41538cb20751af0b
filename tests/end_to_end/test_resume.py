"""If these fail, a run that was killed and resumed, again and again, is not the run that was never stopped.

For every script: one run in one go, and one that is killed with SIGKILL in the middle of an epoch and resumed three
times. Weights, optimizer state and every logged loss must be equal, bit for bit.
"""

import importlib
import signal
import time

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from library.training.checkpoints.states import read_state
from tests.end_to_end.runs import arguments, assert_same, logged, start_command
from tests.end_to_end.test_optimizers import differences
from tests.end_to_end.whole_models import write_metadata
from tests.end_to_end.word_runs import WORD, copy_with_word

STEPS = 8
PLAIN = {"gradient_accumulation_steps": 1, "max_data_loader_n_workers": 0}  # 5 steps to the epoch
SHARED = {"gradient_accumulation_steps": 2, "max_data_loader_n_workers": 2, "cache_latents": True}  # 3 to the epoch
OWN = {
    "train_network": {
        "network_dropout": 0.1,
        "scale_weight_norms": 0.005,
        "network_args": "rank_dropout=0.1 module_dropout=0.1 loraplus_lr_ratio=4 up_lr_weight=linear+.5"
        " network_reg_lrs=.*attn1.*=1e-3 use_dora=True",
    },
    "train_db": {"stop_text_encoder_training": 5, "save_model_as": "safetensors"},
    "fine_tune": {"train_text_encoder": True, "save_model_as": "safetensors"},
    "train_textual_inversion": {
        "token_string": WORD,
        "xti": True,
        "learning_rate": 1e-2,
        "save_model_as": "safetensors",
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_with_word(tmp_path_factory.mktemp("images") / "data")


def argv_of(script, data, output, **options):
    described = write_metadata(data) if script == "fine_tune" else {}
    options = {
        "save_every_n_steps": 1, "save_last_n_steps": 2, "save_state": True, "flip_aug": True, "ema": True,
        "max_train_steps": STEPS, **described, **OWN[script], **options,
    }  # fmt: skip
    return arguments(data, output, **options)


def run_here(script, data, output, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    importlib.import_module(script).train(argv_of(script, data, output, **options))


def kill_after(script, argv, state):
    """Starts the script and kills it as soon as a state is there."""
    process = start_command(argv, f"{script}.py")
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert state.exists() and not (state.parent / "run-state").exists()


def losses(output):
    """Of each step; one that was logged twice, since a state was older than the log, must be equal."""
    rows = logged(output)
    values = dict(rows)
    assert all(values[step] == value for step, value in rows)
    return values


@pytest.mark.parametrize(
    ("script", "sharing"),
    [
        pytest.param("train_network", SHARED, id="train_network-accumulation-workers-cache"),
        pytest.param("train_db", PLAIN, id="train_db"),
        pytest.param("fine_tune", SHARED, id="fine_tune-accumulation-workers-cache"),
        pytest.param("train_textual_inversion", PLAIN, id="train_textual_inversion"),
    ],
)
def test_killed_and_resumed_three_times_equals_never_stopped(images, tmp_path, script, sharing):
    run_here(script, images, tmp_path / "whole", **sharing)
    out = tmp_path / "killed"
    argv = argv_of(script, images, out, **sharing, resume="auto")
    # more steps than it will come to, so that it cannot be done before it is killed
    kill_after(script, [*argv, "--max_train_steps", "1000"], out / "run-step00000002-state")
    for steps in (5, 7, STEPS):
        run_here(script, images, out, **sharing, resume="auto", max_train_steps=steps)
    assert_same(load_file(tmp_path / "whole" / "run.safetensors"), load_file(out / "run.safetensors"))
    (weights, training), (weights_too, training_too) = (
        read_state(str(folder / "run-state")) for folder in (tmp_path / "whole", out)
    )
    assert_same(weights, weights_too)
    assert differences(training, training_too) == []
    assert losses(out) == losses(tmp_path / "whole") and len(losses(out)) == STEPS
