"""If these fail, the ways in which users start training do not work, or do not learn the same."""

import os
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from library.models.text.embedding_files import read_embedding
from library.training.checkpoints.resuming import newest_state
from tests.end_to_end.launches import TWO_PROCESSES, ended, launch, start
from tests.end_to_end.runs import arguments, assert_same, logged, run_command, train
from tests.end_to_end.whole_models import assert_alike, train_whole, write_metadata
from tests.end_to_end.word_runs import copy_with_word, train_word, word_arguments


def test_python_and_accelerate_launch_write_the_same_file(data_dir, tmp_path):
    done = run_command(arguments(data_dir, tmp_path / "python", max_train_steps=3))
    assert done.returncode == 0, done.stderr[-3000:]
    # it ends by saying what was written and what can be done with it
    assert str(tmp_path / "python" / "run.safetensors") in done.stderr.split("Written:")[1]
    assert "load_lora_weights" in done.stderr.split("Next:")[1]
    launch(
        arguments(data_dir, tmp_path / "launched", max_train_steps=3),
        "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    )  # fmt: skip
    assert_same(*(load_file(tmp_path / name / "run.safetensors") for name in ("python", "launched")))


@pytest.mark.slow
def test_two_processes_train_a_whole_model_as_one_does_with_twice_the_accumulation(data_dir, tmp_path):
    options = {"max_train_steps": 4, "stop_text_encoder_training": 2, "learning_rate": 1e-2, "optimizer_type": "SGD"}
    train_whole("train_db", data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    launch(
        arguments(data_dir, tmp_path / "two", **options),
        *TWO_PROCESSES, script="train_db.py",
    )  # fmt: skip
    assert_alike(tmp_path / "two", tmp_path / "one", {"unet", "text_encoder"})


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does_with_twice_the_accumulation(data_dir, tmp_path):
    options = {"max_train_steps": 4, "train_text_encoder": True, "learning_rate": 1e-2, "optimizer_type": "SGD"}
    train_whole("fine_tune", data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    described = write_metadata(data_dir)
    launch(arguments(data_dir, tmp_path / "two", **options, **described), *TWO_PROCESSES, script="fine_tune.py")
    assert_alike(tmp_path / "two", tmp_path / "one", {"unet", "text_encoder"})


@pytest.mark.slow
def test_two_processes_teach_a_word_as_one_does_with_twice_the_accumulation(tmp_path):
    data = copy_with_word(tmp_path / "words")
    options = {"max_train_steps": 4, "xti": True, "num_vectors_per_token": 2, "init_word": "fox", "ema": True}
    one = train_word(data, tmp_path / "one", gradient_accumulation_steps=2, **options)
    argv = word_arguments(data, tmp_path / "two", **options)
    launch(argv, *TWO_PROCESSES, script="train_textual_inversion.py")
    two = read_embedding(tmp_path / "two" / "run.safetensors")
    torch.testing.assert_close(two.vectors, one.vectors, rtol=1e-4, atol=1e-6)
    assert two.layers == one.layers and len(set(two.vectors[:, 0, 0].tolist())) == len(two.layers)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_twice_the_accumulation(data_dir, tmp_path):
    options = {"max_train_steps": 5, "cache_latents_to_disk": True, "network_dropout": 0.2}
    options |= {"ema": True, "ema_decay": 0.5, "validation_split": 0.4, "train_batch_size": 1}
    one = train(data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    for cache in data_dir.rglob("*_sd.npz"):
        cache.unlink()  # the two are to share the work
    assert "processes 2" in launch(arguments(data_dir, tmp_path / "two", **options), *TWO_PROCESSES)
    two = load_file(tmp_path / "two" / "run.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    curves = [logged(tmp_path / name, "loss/validation") for name in ("one", "two")]
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]] == [0, 3, 5]
    assert [value for _, value in curves[1]] == pytest.approx([value for _, value in curves[0]], rel=1e-4)
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_up" in name) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "by"), [("0", ""), ("1", ""), ("0", "SIGKILL")])
def test_a_process_that_fails_ends_all_and_the_last_whole_step_is_saved(data_dir, tmp_path, rank, by):
    """It tells the others, or it is gone; then one that is left saves, be it not the first."""
    options = {"network_module": "tests.end_to_end.failing_network", "max_train_steps": 50}
    run = start(arguments(data_dir, tmp_path, **options), *TWO_PROCESSES, FAILING_RANK=rank, FAILING_BY=by)
    said = ended(run)
    assert run.returncode != 0
    end = said[said.rindex("Root Cause") :]
    if not by:  # its cause is in the last lines
        assert "error: the disk of this process is full" in end and "make room" in end and "GLHF" not in said
    assert "[rank" not in said  # the other has no traceback of its own
    assert not (tmp_path / "run.safetensors").exists()
    assert said.count("the run ends after step 2: ") == 1
    assert newest_state(str(tmp_path), "run").position.global_step == 2
    weights = load_file(tmp_path / "run-step00000002.safetensors")
    assert_same(load_file(tmp_path / "run-step00000002-state" / "weights.safetensors"), weights)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.kill), (signal.SIGTERM, os.killpg)])
def test_a_signal_to_the_launcher_or_to_all_saves_once_and_ends_all(data_dir, tmp_path, number, send):
    """To all, it comes to a process of the run twice, and to its workers too."""
    options = {"max_train_steps": 5000, "save_every_n_steps": 2, "max_data_loader_n_workers": 1}
    run = start(arguments(data_dir, tmp_path, **options), *TWO_PROCESSES)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run-step00000002.safetensors").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    send(run.pid, number)
    said = ended(run)
    (state,) = tmp_path.glob("run-step*-state")
    assert said.count("stopped by") == 1 and "No state was saved" not in said
    assert f"--resume {state}" in said and "accelerate launch --multi_gpu --num_processes 2" in said
