"""Each mistake a user can make is answered with a line that names it and one that helps, before anything is loaded."""

import subprocess
import sys

import pytest
import torch

from library.cli.entry import run_entry
from tests.end_to_end.runs import BASE, IMAGES, ROOT, arguments, copy_images, train

# says whether an answer needed one of the heavy libraries
PROBE = """
import sys
import train_network
from library.cli.entry import run_entry
status = run_entry(lambda: train_network.train(sys.argv[1:]))
loaded = [name for name in ("torch", "diffusers", "transformers", "accelerate", "cv2") if name in sys.modules]
print("loaded:", loaded)
sys.exit(status)
"""


def answer(argv):
    """(exit status, standard output, standard error) of the command in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def lines_of(argv, capsys):
    """The error lines in this process; the status must be 2 and nothing but errors be said."""
    import train_network

    status = run_entry(lambda: train_network.train(argv))
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return errors, said


def test_help_and_mistakes_need_no_heavy_library(tmp_path):
    status, said, errors = answer(["--help"])
    assert status == 0 and "--network_dim" in said and errors == ""
    data = copy_images(tmp_path / "data", 1)
    for argv in (
        ["--learning_rat", "1"],
        arguments(tmp_path / "nowhere", tmp_path / "out"),
        arguments(data, tmp_path / "out", pretrained_model_name_or_path=tmp_path / "model"),
        arguments(data, tmp_path / "out", resolution=None),
        arguments(data, tmp_path / "out", network_module="networks.lorra"),
    ):
        status, said, errors = answer(argv)
        assert (status, said) == (2, "loaded: []\n"), errors
        assert errors.startswith("error: ") or "\nerror: " in errors  # warnings may come first
    assert not (tmp_path / "out").exists()


def test_what_the_models_small_files_rule_out_is_said_together_and_without_loading_it(tmp_path):
    """The base predicts noise, has 4 layers in its text encoder, and 1000 timesteps; the image is damaged."""
    data = copy_images(tmp_path / "data", 1)
    (image,) = data.rglob("*.png")
    image.write_bytes(b"")
    argv = arguments(
        data,
        tmp_path / "out",
        v2=True,
        clip_skip=30,
        max_timestep=1001,
        scale_v_pred_loss_like_noise_pred=True,
        cache_text_encoder_outputs=True,
    )
    status, said, errors = answer(argv)
    assert (status, said) == (2, "loaded: []\n"), errors
    found = [line for line in errors.splitlines() if line.startswith("error: ")]
    named = ("--v2", "--clip_skip 30", "--scale_v_pred", "--max_timestep 1001", "--cache_text_encoder", image.name)
    assert [name in line for name, line in zip(named, found, strict=True)] == [True] * 6, errors


MISTAKES = {
    "wrong folder": ({"train_data_dir": "nowhere"}, "nowhere", "folder"),
    "a file as folder": ({"train_data_dir": __file__}, "test_mistakes.py", "folder"),
    "missing model": ({"pretrained_model_name_or_path": "no.safetensors"}, "no.safetensors", "path"),
    "not a model": ({"pretrained_model_name_or_path": __file__}, "test_mistakes.py", ""),
    "no output folder": ({"output_dir": None}, "--output_dir is missing", "required"),
    "no model": ({"pretrained_model_name_or_path": None}, "--pretrained_model_name_or_path is missing", "required"),
    "no data": ({"train_data_dir": None}, "no training data", "--dataset_config"),
    "no resolution": ({"resolution": None}, "--resolution is missing", "512"),
    "unknown option": ({"lerning_rate": 1}, "--lerning_rate", "--learning_rate"),
    "wrong type": ({"max_train_steps": "many"}, "--max_train_steps many", "whole number"),
    "wrong choice": ({"mixed_precision": "fp8"}, "--mixed_precision fp8", "bf16"),
    "unknown optimizer": ({"optimizer_type": "Prodgy"}, "--optimizer_type Prodgy", "Prodigy?"),
    "optimizer of no module": ({"optimizer_type": "adamw.AdamW"}, "no module adamw", "check the name"),
    "optimizer of another training": ({"optimizer_type": "lbfgs"}, "computes the loss several times", "another"),
    "unknown network module": ({"network_module": "networks.lorra"}, "networks.lorra", "networks.lora"),
    "missing LoRA": ({"network_weights": "no.safetensors"}, "--network_weights no.safetensors", "LoRA"),
    "missing LoRA to merge": ({"base_weights": "no.safetensors"}, "--base_weights no.safetensors", "LoRA"),
    "folder of a LoRA": ({"network_weights": "."}, "--network_weights . is a folder", "file in it"),
    "ranks of no file": ({"dim_from_weights": True}, "--dim_from_weights without --network_weights", "LoRA file"),
    "missing prompts": ({"sample_prompts": "no.txt", "sample_at_first": True}, "--sample_prompts no.txt", ".txt file"),
    "missing state": ({"resume": "no-state"}, "--resume no-state", "state"),
    "resume from images": ({"resume": str(IMAGES)}, "state.json", "--save_state"),
    "output over a file": ({"output_dir": __file__}, "is a file", "folder"),
    "nothing to train": (
        {"network_train_unet_only": True, "network_train_text_encoder_only": True},
        "leave nothing to train",
        "keep one",
    ),
    "impossible buckets": ({"min_bucket_reso": 256}, "min_bucket_reso", ""),
    "unknown network argument": ({"network_args": "conv_dimm=4"}, "conv_dimm", "conv_dim"),
    "contradiction with the model": ({"v2": True}, "--v2", ""),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_what_to_do(name, data_dir, tmp_path, capsys):
    change, named, helps = MISTAKES[name]
    errors, said = lines_of(arguments(data_dir, tmp_path / "out", **change), capsys)
    assert len(errors) == 1 and named in errors[0], said
    hint = said.split(errors[0])[1].splitlines()[1]
    assert hint.startswith("  ") and helps in hint
    assert not (tmp_path / "out" / "run.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_a_corrupt_image_is_named(content, data_dir, tmp_path, capsys):
    (image,) = data_dir.rglob("fox_02.png")
    image.write_bytes(image.read_bytes()[:3000] if content == "truncated" else content)
    errors, said = lines_of(arguments(data_dir, tmp_path / "out"), capsys)
    assert len(errors) == 1 and "fox_02.png" in errors[0], said
    # found by a worker as well
    if content == "truncated":
        argv = arguments(data_dir, tmp_path / "out", max_data_loader_n_workers=1)
        assert "fox_02.png" in lines_of(argv, capsys)[0][0]


def test_an_empty_folder_is_named(tmp_path, capsys):
    (tmp_path / "data" / "1_cat").mkdir(parents=True)
    errors, _ = lines_of(arguments(tmp_path / "data", tmp_path / "out"), capsys)
    assert len(errors) == 1 and "1_cat" in errors[0]


def test_the_dataset_file_is_checked_with_the_rest(tmp_path, capsys):
    config = tmp_path / "data.toml"
    config.write_text(
        "[[datasets]]\nresolution = 64\nbatch_sise = 2\n"
        f"[[datasets.subsets]]\nimage_dir = '{IMAGES}'\nnum_repeats = 'two'\n[[datasets.subsets]]\nimage_dir = 'no'\n"
    )
    argv = arguments(None, tmp_path / "out", dataset_config=config, seed="x", pretrained_model_name_or_path="no")
    errors, said = lines_of(argv, capsys)
    assert "--seed x" in said and "whole number" in said
    assert "batch_sise" in said and "batch_size" in said
    assert "datasets[0].subsets[0].num_repeats" in said
    assert "--pretrained_model_name_or_path no" in said
    assert len(errors) >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_a_precision_that_the_device_lacks_is_refused_before_loading(data_dir, tmp_path, capsys):
    argv = arguments(data_dir, tmp_path / "out", mixed_precision="fp16")
    errors, said = lines_of(argv, capsys)
    assert errors == ["error: --mixed_precision fp16 needs a GPU, and none was found"] and "bf16" in said
    assert "loaded base" not in said


def test_a_state_of_another_run_is_refused(data_dir, tmp_path, capsys):
    train(data_dir, tmp_path / "first", save_state=True, save_every_n_steps=1, max_train_steps=2)
    state = tmp_path / "first" / "run-step00000002-state"
    cases = [
        ({"seed": 8}, "--seed 8"),
        ({"network_dim": 8, "seed": None}, "--network_dim 4, this one 8"),
        ({"train_batch_size": 4, "seed": None}, "batches"),
        ({"max_train_steps": 1, "seed": None}, "has done 2 steps"),
    ]
    for change, named in cases:
        errors, said = lines_of(arguments(data_dir, tmp_path / "out", resume=state, **change), capsys)
        assert len(errors) == 1 and named in errors[0], said
    for name in ("state.json", "weights.safetensors", "training.pt"):
        content = (state / name).read_bytes()
        (state / name).write_bytes(content[: len(content) // 2])
        errors, said = lines_of(arguments(data_dir, tmp_path / "out", resume=state), capsys)
        assert len(errors) == 1 and name in errors[0] and "damaged" in errors[0], said
        (state / name).write_bytes(content)
    # the earlier run's files are as they were
    assert BASE.exists() and (tmp_path / "first" / "run.safetensors").exists()
