"""If these fail, configuration files as front ends, notebooks and people write them no longer run unchanged.

`files/` holds them, with MODEL, DATA and OUT in place of paths. Each is trained for two steps of 64 pixels.
"""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_db
import train_network
from library.cli.errors import UserError, UserErrors
from tests.end_to_end.runs import BASE

FILES = Path(__file__).parent / "files"

# on the command line, which wins: little to compute, and what a computer without a GPU can do
SHORT = {
    "max_train_steps": "2",
    "max_train_epochs": "0",  # off: the steps count
    "resolution": "64,64",
    "min_bucket_reso": "64",
    "mixed_precision": "bf16",
    "save_precision": "float",
    "learning_rate": "1e-4",
    "max_data_loader_n_workers": "0",
}

UNUSED = "not used here: epoch, noise_offset_type"
NO_PROMPT_FILE = "no sample images are generated: --sample_prompts {out}/sample/prompt.txt does not exist"
NO_XFORMERS = "--xformers: the package xformers is not installed"

# what each file is warned of, in any order; the beginnings of the lines
WARNINGS = {
    "block_lr_weights": [],
    "dynamo_no": [],
    "empty_folder_name": [],
    "empty_prompt_file": [NO_PROMPT_FILE],
    "gui_dreambooth": [
        UNUSED,
        "--wandb_run_name without --log_with wandb: does nothing",
        NO_PROMPT_FILE,
        NO_XFORMERS,
        "single files do not hold",  # how small this model is
    ],
    "gui_lora": [UNUSED, "--wandb_run_name without --log_with wandb: does nothing", NO_PROMPT_FILE, NO_XFORMERS],
    "loraplus_at_top_level": [
        "loraplus_lr_ratio = 4 is used as an argument of --network_args",
        "not used here: lowvram",
    ],
    "mem_eff_and_xformers": ["of --mem_eff_attn and --xformers only --mem_eff_attn is used"],
    "min_snr_gamma_0": [],
    "network_alpha_0": [],
    "resume_false": [],
    "same_key_twice": [],
    "sample_every_0": [],
    "save_model_as": [],
    "save_n_epoch_ratio_0": [],
    "sdpa_and_xformers": ["of --xformers and --sdpa only --xformers is used", NO_XFORMERS],
    "sections_twice": [
        "lr_restart_cycles = 1 is read as lr_scheduler_num_cycles",
        "no sample images are generated: --sample_prompts is missing",
        NO_XFORMERS,
    ],
    "text_encoder_lr_list": [],
    "unknown_keys": [
        "lr_restart_cycles = 1 is read as lr_scheduler_num_cycles",
        UNUSED,
        "--wandb_run_name without --log_with wandb: does nothing",
    ],
    "workers_as_number": [],
}

# what would train something else than is asked for, for want of a file or of an argument: one line each
REFUSED = {
    "base_weights": "--base_weights x.safetensors does not exist",
}


def command_line(name, data_dir, out, **more):
    text = (FILES / f"{name}.toml").read_text(encoding="utf-8")
    for word, path in (("MODEL", BASE), ("DATA", data_dir), ("OUT", out)):
        text = text.replace(f'"{word}', f'"{path}')
    config = out / f"{name}.toml"
    out.mkdir()
    config.write_text(text, encoding="utf-8")
    paths = {"output_dir": out, "logging_dir": ""}
    return ["--config_file", str(config), *(f"--{key}={value}" for key, value in {**SHORT, **paths, **more}.items())]


def test_every_file_is_tried():
    assert {path.stem for path in FILES.glob("*.toml")} == {*WARNINGS, *REFUSED}


@pytest.mark.parametrize("name", WARNINGS)
def test_a_file_of_another_program_trains(name, data_dir, tmp_path, caplog):
    out = tmp_path / "out"
    script = train_db if name == "gui_dreambooth" else train_network
    script.train(command_line(name, data_dir, out))
    saved = load_file(out / ("output_name.safetensors" if name == "sections_twice" else "last.safetensors"))
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    if script is train_network:
        assert any(key.startswith("lora_te") for key in saved) and any(key.startswith("lora_unet") for key in saved)
        assert any(key.endswith("lora_up.weight") and tensor.any() for key, tensor in saved.items())
    warned = [
        record.getMessage().replace(f"{out}/{name}.toml: ", "")
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name.startswith(("library", "networks"))
    ]
    expected = sorted(text.format(out=out) for text in WARNINGS[name])
    assert len(warned) == len(expected)
    assert all(line.startswith(begin) for line, begin in zip(sorted(warned), expected, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_and_changes_the_result_is_one_line(name, data_dir, tmp_path):
    with pytest.raises(UserError) as caught:
        train_network.train(command_line(name, data_dir, tmp_path / "out"))
    assert not isinstance(caught.value, UserErrors)
    assert caught.value.message == REFUSED[name] and caught.value.hint


def test_the_alpha_of_0_is_the_rank(data_dir, tmp_path):
    out = tmp_path / "out"
    train_network.train(command_line("network_alpha_0", data_dir, out, network_dim=8))
    saved = load_file(out / "last.safetensors")
    assert {float(tensor) for key, tensor in saved.items() if key.endswith(".alpha")} == {8.0}


def test_files_of_a_run_without_a_name_are_named_as_by_the_reference(data_dir, tmp_path):
    """The reference's names: last, epoch-000003, at-step00001234."""
    shutil.rmtree(data_dir / "2_shs fox")
    folder = data_dir / "1_fox"
    folder.mkdir()
    shutil.copy(next((BASE.parent / "images").glob("*.png")), folder)
    out = tmp_path / "out"
    argv = command_line(
        "save_model_as", data_dir, out, save_every_n_epochs=1, save_every_n_steps=2, max_train_steps=3,
        save_model_as="ckpt",
    )  # fmt: skip
    train_network.train([*argv, "--save_state"])
    names = {path.name for path in out.iterdir()} - {"save_model_as.toml"}
    weights = {"last.ckpt", "epoch-000001.ckpt", "epoch-000002.ckpt", "at-step00000002.ckpt"}
    states = {"last-state", "epoch-000001-state", "epoch-000002-state", "at-step00000002-state"}
    assert names == weights | states | {"last-run.html"}
    # which are found again: by retention, by --resume auto, and by the look for an earlier run
    with pytest.raises(UserError, match="holds an earlier run's"):
        train_network.train(argv)
    train_network.train([*argv, "--resume=auto", "--max_train_steps=6", "--save_last_n_epochs=1"])
    assert {path.name for path in out.glob("epoch-*.ckpt")} == {"epoch-000005.ckpt"}
    weights = torch.load(out / "last.ckpt", weights_only=True)
    assert weights.keys() == torch.load(out / "epoch-000005.ckpt", weights_only=True).keys()


@pytest.mark.parametrize("ending", ["ckpt", "pt"])
def test_a_lora_saved_as_a_pickle_is_read_back(ending, data_dir, tmp_path):
    """A run of learning rate 0 that begins with the file saves its weights again, bit for bit."""
    out, again = tmp_path / "out", tmp_path / "again"
    train_network.train(command_line("save_model_as", data_dir, out, save_model_as=ending))
    saved = torch.load(out / f"last.{ending}", weights_only=True)
    assert not list(out.glob("*.safetensors")) and any(
        tensor.any() for key, tensor in saved.items() if "lora_up" in key
    )
    more = {"network_weights": out / f"last.{ending}", "max_train_steps": 1, "lr_scheduler": "constant_with_warmup"}
    train_network.train(command_line("save_model_as", data_dir, again, lr_warmup_steps=1, **more))
    read = load_file(again / "last.safetensors")
    assert read.keys() == saved.keys() and all(torch.equal(read[key], saved[key]) for key in read)
