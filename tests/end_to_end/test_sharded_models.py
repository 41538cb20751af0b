"""If these fail, full fine-tuning that is sharded over processes does not give the models that one process gives."""

import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tests.end_to_end.launches import TWO_PROCESSES, ended, launch, stand_in_for_deepspeed, start
from tests.end_to_end.runs import BASE, ROOT, arguments, assert_same, copy_images, logged
from tests.end_to_end.whole_models import assert_alike, changed_parts, read_model, train_whole, write_metadata

TWO = ("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
FSDP = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy")
# ways of sharding: options of the launcher, options of the script
LAYOUTS = {
    "zero2": (TWO_PROCESSES, {"deepspeed": True, "zero_stage": 2}),
    # accelerate would divide losses by this accumulation
    "zero3": (
        (
            "--use_deepspeed", "--zero_stage", "3", "--offload_optimizer_device", "cpu",
            "--gradient_accumulation_steps", "3", *TWO,
        ),
        {},
    ),
    "fsdp-blocks": ((*FSDP, "TRANSFORMER_BASED_WRAP", *TWO), {}),
    "fsdp-size": ((*FSDP, "SIZE_BASED_WRAP", "--fsdp_min_num_params", "100000", *TWO), {}),
    # what `accelerate config` gives by itself is version 1
    "fsdp1": (("--use_fsdp", "--fsdp_sharding_strategy", "SHARD_GRAD_OP", *TWO), {}),
}  # fmt: skip
# an epoch of 6 micro-batches: a step of 4 and one of 2, of which each process has one
OPTIONS = {"optimizer_type": "SGDNesterov", "learning_rate": 1e-2, "train_batch_size": 1, "validation_split": 0.4}


def environment_of(layout, folder):
    return stand_in_for_deepspeed(folder / "packages") if "--use_deepspeed" in LAYOUTS[layout][0] else {}


def train_sharded(layout, data, output, *, script="train_db.py", **options):
    launcher, own = LAYOUTS[layout]
    options = {"gradient_accumulation_steps": 2, **OPTIONS, **own, **options}
    environment = environment_of(layout, output)
    return launch(arguments(data, output, **options), *launcher, script=script, **environment)


def images_of(output):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted((output / "sample").glob("*_0?_*.png"))]


def state_of(folder):
    return load_file(folder / "weights.safetensors"), torch.load(folder / "training.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process, and the data and options that those of several take as well."""
    folder = tmp_path_factory.mktemp("one")
    data = copy_images(folder / "data")
    prompts = folder / "prompts.txt"
    prompts.write_text("shs fox --w 64 --h 64 --s 3\n")
    options = {"max_train_steps": 4, "sample_prompts": prompts, "sample_every_n_steps": 2, "ema": True}
    options |= {"clip_skip": 2, "gradient_checkpointing": True, "optimizer_args": "weight_decay=0.01", "ema_decay": 0.5}
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train_whole(
            "train_db", data, folder, gradient_accumulation_steps=4, logging_dir=folder / "logs", **OPTIONS, **options
        )
    return folder, data, options


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[] if name == "zero2" else pytest.mark.slow) for name in LAYOUTS]
)
def test_two_processes_with_shards_train_what_one_process_trains(one, tmp_path, layout):
    folder, data, options = one
    said = train_sharded(layout, data, tmp_path, **options)
    assert "Traceback" not in said and "[WARNING]" not in said.replace("Setting accelerator to CPU", "")
    assert said.count("is carried out by PyTorch's FSDP2") == layout.startswith("zero")
    assert said.count("says 3, but --gradient_accumulation_steps 2 is used") == 2 * (layout == "zero3")
    assert_alike(tmp_path, folder, {"unet", "text_encoder"})
    wanted, found = (logged(path, "loss/validation") for path in (folder, tmp_path))
    assert [step for step, _ in found] == [step for step, _ in wanted] == [0, 2, 4]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-4)
    wanted, found = (images_of(path) for path in (folder, tmp_path))
    assert len(wanted) == len(found) == 2  # no process draws twice
    assert max(abs(left - right).max() for left, right in zip(wanted, found, strict=True)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero3", "fsdp-size"])
def test_it_goes_on_bit_for_bit_in_the_middle_of_an_epoch(data_dir, tmp_path, layout):
    options = {"optimizer_type": "AdamW", "learning_rate": 1e-3, "save_state": True, "save_every_n_steps": 3}
    options |= {"max_train_steps": 5, "lr_scheduler": "cosine", "ema": True}
    train_sharded(layout, data_dir, tmp_path / "whole", **options)
    state = tmp_path / "whole" / "run-step00000003-state"
    train_sharded(layout, data_dir, tmp_path / "again", resume=state, **options)
    whole, again = (state_of(tmp_path / name / "run-state") for name in ("whole", "again"))
    assert_same(whole[0], again[0])
    for index, entries in whole[1]["optimizer"]["state"].items():
        assert_same(entries, again[1]["optimizer"]["state"][index])
    assert whole[1]["lr_schedule"] == again[1]["lr_schedule"]
    assert torch.equal(whole[1]["losses"], again[1]["losses"])
    averages = [training["average"]["averages"] for _, training in (whole, again)]
    assert averages[0] and all(torch.equal(*pair) for pair in zip(*averages, strict=True))


@pytest.mark.slow
def test_a_state_does_not_know_how_it_was_sharded(data_dir, tmp_path):
    """From layout to layout, to one process in the end: the weights are those of one process all the way."""
    train_whole("train_db", data_dir, tmp_path / "one", gradient_accumulation_steps=4, max_train_steps=4, **OPTIONS)
    options = {"save_state": True, "ema": True}
    train_sharded("zero2", data_dir, tmp_path / "1", max_train_steps=1, **options)
    train_sharded("fsdp1", data_dir, tmp_path / "2", max_train_steps=2, resume=tmp_path / "1" / "run-state", **options)
    for steps, resumed in ((3, "2"), (4, "3")):
        train_whole(
            "train_db", data_dir, tmp_path / str(steps), gradient_accumulation_steps=4, max_train_steps=steps,
            resume=tmp_path / resumed / "run-state", save_state=True, **OPTIONS,
        )  # fmt: skip
    assert_alike(tmp_path / "4", tmp_path / "one", {"unet", "text_encoder"})


@pytest.mark.slow
def test_the_u_net_alone_is_fine_tuned_in_16_bits(data_dir, tmp_path):
    options = {"max_train_steps": 3, "mixed_precision": "bf16", "full_bf16": True, "learning_rate": 1e-3}
    options |= write_metadata(data_dir)
    train_whole("fine_tune", None, tmp_path / "one", gradient_accumulation_steps=4, **OPTIONS | options)
    train_sharded("zero2", data_dir, tmp_path / "two", script="fine_tune.py", **options)
    one, two, base = (read_model(folder) for folder in (tmp_path / "one" / "run", tmp_path / "two" / "run", BASE))
    assert changed_parts(two, base) == {"unet"}
    moved, apart = (
        sum(float((left["unet"][name] - right["unet"][name]).abs().sum()) for name in base["unet"])
        for left, right in ((one, base), (one, two))
    )
    assert apart < 0.05 * moved  # as far as 16 bits go


@pytest.mark.slow
def test_one_process_without_a_launcher_keeps_the_optimizer_in_the_computers_memory(data_dir, tmp_path):
    train_whole("train_db", data_dir, tmp_path / "plain", **OPTIONS)
    argv = arguments(
        data_dir, tmp_path / "offloaded", max_train_steps=4, deepspeed=True, offload_optimizer_device="nvme", **OPTIONS
    )
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "train_db.py", *argv], capture_output=True, text=True, cwd=ROOT, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: --offload_optimizer_device nvme: offloading is to CPU memory" in done.stderr
    assert_alike(tmp_path / "offloaded", tmp_path / "plain", {"unet", "text_encoder"})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
@pytest.mark.parametrize("layout", ["zero2", "zero3", "fsdp-size"])
def test_a_signal_saves_and_says_how_to_go_on_in_the_same_way(data_dir, tmp_path, layout):
    launcher, own = LAYOUTS[layout]
    options = {"max_train_steps": 5000, "save_every_n_steps": 2, **OPTIONS, **own}
    run = start(
        arguments(data_dir, tmp_path, **options), *launcher, script="train_db.py", **environment_of(layout, tmp_path)
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run-step00000002").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    said = ended(run)
    (state,) = tmp_path.glob("run-step*-state")
    (line,) = [line for line in said.splitlines() if "To resume: " in line]
    words = shlex.split(line.split("To resume: ")[1])
    assert words[:2] == ["accelerate", "launch"] and words[-2:] == ["--resume", str(state)]
    for flag, value in zip(launcher, launcher[1:], strict=False):
        if flag.startswith(("--use_", "--zero", "--fsdp", "--offload", "--num_processes")) and value[0] != "-":
            assert words[words.index(flag) + 1] == value
    assert [flag for flag in launcher if flag.startswith("--use_") and flag not in words] == []
    assert ("--deepspeed" in words) == ("deepspeed" in own)
