"""A mistake that a user of train_db.py or fine_tune.py makes is answered before anything is loaded, with a remedy."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from diffusers import UNet2DConditionModel

from library.cli.entry import run_entry
from library.cli.errors import UserError
from tests.end_to_end.runs import BASE, IMAGES, ROOT, arguments
from tests.end_to_end.whole_models import SCRIPTS, train_whole, write_metadata
from tests.tiny_models import make_tiny, write_folder

# says whether an answer needed one of the heavy libraries
PROBE = """
import sys
import {script}
from library.cli.entry import run_entry
status = run_entry(lambda: {script}.train(sys.argv[1:]))
print("loaded:", [name for name in ("torch", "diffusers", "transformers", "accelerate") if name in sys.modules])
sys.exit(status)
"""


def lines_of(script, argv, capsys):
    """The error lines; the status must be 2, and no model have been loaded."""
    status = run_entry(lambda: SCRIPTS[script].train(argv))
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said and "loaded base" not in said
    return [line for line in said.splitlines() if line.startswith("error: ")], said


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes_need_no_heavy_library(script, data_dir, tmp_path):
    def answer(argv):
        command = [sys.executable, "-c", PROBE.format(script=script), *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)

    done = answer(["--help"])
    assert done.returncode == 0 and "--learning_rate_te" in done.stdout and "--network_dim" not in done.stdout
    done = answer(arguments(data_dir / "no", tmp_path / "out", fused_backward_pass=True, use_8bit_adam=True))
    assert (done.returncode, done.stdout) == (2, "loaded: []\n") and done.stderr.count("error: ") == 2


MISTAKES = {
    "metadata for train_db": ("train_db", {"in_json": "meta.json"}, "--in_json: a metadata file", "fine_tune.py"),
    "stop below -1": ("train_db", {"stop_text_encoder_training": -2}, "--stop_text_encoder_training -2", "-1 or more"),
    "caching what changes": (
        "train_db", {"cache_text_encoder_outputs": True}, "--cache_text_encoder_outputs", "_training -1",
    ),
    "caching what is asked to change": (
        "fine_tune",
        {"cache_text_encoder_outputs": True, "train_text_encoder": True},
        "--cache_text_encoder_outputs",
        "without --train_text_encoder",
    ),
    "caching captions of many lengths": (
        "train_db",
        {"cache_text_encoder_outputs": True, "stop_text_encoder_training": -1, "no_token_padding": True},
        "--no_token_padding",
        "leave one",
    ),
    "long captions without padding": (
        "train_db", {"no_token_padding": True, "max_token_length": 150}, "--max_token_length 150", "leave one",
    ),
    "unknown format": ("train_db", {"save_model_as": "pt"}, "--save_model_as pt", "one of ckpt, safetensors, diffus"),
    "fused with 8 bits": (
        "train_db", {"fused_backward_pass": True, "optimizer_type": "AdamW8bit"}, "--optimizer_type AdamW8bit", "AdamW",
    ),
    "fused and accumulated": (
        "train_db",
        {"fused_backward_pass": True, "gradient_accumulation_steps": 2},
        "--gradient_accumulation_steps 2",
        "--train_batch_size",
    ),
    "fused and scaled": ("train_db", {"fused_backward_pass": True, "mixed_precision": "fp16"}, "fp16", "bf16"),
    "option of another script": ("train_db", {"train_text_encoder": True}, "--train_text_encoder", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_what_to_do(name, data_dir, tmp_path, capsys):
    script, change, named, helps = MISTAKES[name]
    described = write_metadata(data_dir) if script == "fine_tune" else {}
    errors, said = lines_of(script, arguments(data_dir, tmp_path / "out", **{**described, **change}), capsys)
    assert len(errors) == 1 and named in errors[0], said
    hint = said.split(errors[0])[1].splitlines()[1]
    assert hint.startswith("  ") and helps in hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "other", "here"),
    [
        ("train_db", "metadata_file", "datasets[1].subsets[0].metadata_file: a metadata file"),
        ("fine_tune", "image_dir", "datasets[0].subsets[0].image_dir: a folder of images"),
    ],
)
def test_a_dataset_file_of_the_other_kind_is_named_where_it_stands(script, other, here, tmp_path, capsys):
    config = tmp_path / "data.toml"
    config.write_text(
        f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{IMAGES}'\n"
        "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\n"
        f"image_dir = '{IMAGES}'\nmetadata_file = 'nowhere.json'\n"
    )
    argv = arguments(None, tmp_path / "out", dataset_config=config, pretrained_model_name_or_path="nowhere")
    errors, said = lines_of(script, argv, capsys)
    assert len(errors) == 2 and any(here in line for line in errors), said  # with the missing model
    assert "nowhere.json" not in said  # what is refused is not read


def test_fine_tuning_without_metadata_says_what_is_missing(data_dir, tmp_path, capsys):
    errors, said = lines_of("fine_tune", arguments(data_dir, tmp_path / "out"), capsys)
    assert errors == ["error: --in_json is missing"] and "train_db.py" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"up_block_types": ("CrossAttnUpBlock2D",) * 2}, "no name for: up_blocks.0.attentions.0"),
        ({"layers_per_block": (1, 2)}, "number of layers in each level"),
    ],
)
def test_a_model_that_a_single_file_has_no_names_for_is_told_before_it_is_trained(change, said, data_dir, tmp_path):
    """Else the first save fails, after hours."""
    tiny = make_tiny(False)
    unet = UNet2DConditionModel.from_config({**tiny.unet.config, **change})
    base = write_folder(replace(tiny, unet=unet), tmp_path / "base")
    options = {"pretrained_model_name_or_path": base, "max_train_steps": 1, "cache_latents_to_disk": True}
    with pytest.raises(UserError, match=said) as caught:
        train_whole("train_db", data_dir, tmp_path / "out", **options, save_model_as="safetensors")
    assert "--save_model_as safetensors" in caught.value.message
    assert "--save_model_as diffusers" in caught.value.hint and not list(data_dir.rglob("*.npz"))
    train_whole("train_db", data_dir, tmp_path / "whole", **options)
    assert (tmp_path / "whole" / "run" / "model_index.json").is_file()


def test_nothing_of_the_users_is_replaced_by_a_saved_model(data_dir, tmp_path, capsys):
    shutil.copytree(BASE, tmp_path / "models" / "base")
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "models" / "notes" / "a.txt").write_text("mine")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    cases = [
        ({"output_name": "base", "pretrained_model_name_or_path": tmp_path / "models" / "base"}, "--pretrained_model"),
        ({"output_name": "notes"}, "is not empty and not a model"),
        ({"output_name": "sample", "sample_prompts": tmp_path / "prompts.txt"}, "sample images"),
        ({"output_name": "base", "logging_dir": tmp_path / "models" / "base" / "logs"}, "--logging_dir"),
    ]
    for change, named in cases:
        errors, said = lines_of("train_db", arguments(data_dir, tmp_path / "models", **change), capsys)
        errors = [error for error in errors if "earlier run" not in error]  # a folder of a model could be one's
        assert len(errors) == 1 and named in errors[0] and "--output_name" in said, said
    # a file beside a folder of that name is no such case
    argv = {"output_name": "base", "save_model_as": "safetensors", "max_train_steps": 1}
    train_whole("train_db", data_dir, tmp_path / "models", **argv)
    assert (tmp_path / "models" / "base.safetensors").is_file()


def test_a_state_of_another_choice_of_what_learns_is_refused(data_dir, tmp_path, capsys):
    train_whole("train_db", data_dir, tmp_path / "first", save_state=True, max_train_steps=1)
    state = tmp_path / "first" / "run-state"
    argv = arguments(data_dir, tmp_path / "out", resume=state, stop_text_encoder_training=-1)
    assert run_entry(lambda: SCRIPTS["train_db"].train(argv)) == 2
    said = capsys.readouterr().err
    assert "trains text_encoder and unet, this one trains unet" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "run").exists()


def test_what_does_nothing_for_a_frozen_part_is_warned_of(data_dir, tmp_path, caplog):
    """Front ends write the rate of a text encoder that they do not train, and 8 bits of a U-Net that they do."""
    described = write_metadata(data_dir)
    options = {"learning_rate_te": 1e-5, "fp8_base": True, "max_train_steps": 1}
    train_whole("fine_tune", None, tmp_path / "tuned", **{**described, **options})
    assert "--learning_rate_te 1e-05 does nothing: the text encoder is not trained without --train" in caplog.text
    assert "--fp8_base does nothing: it stores a frozen U-Net in fp8, and here the U-Net is trained" in caplog.text
    options = {"learning_rate_te": 1e-5, "stop_text_encoder_training": -1, "max_train_steps": 1}
    caplog.clear()
    train_whole("train_db", data_dir, tmp_path / "db", **options)
    assert "is not trained with --stop_text_encoder_training -1" in caplog.text
