"""Each mistake in training a new word is answered with a line that names it and one that helps."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import train_textual_inversion
from library.cli.errors import UserError
from tests.end_to_end.runs import BASE, IMAGES, ROOT
from tests.end_to_end.word_runs import WORD, copy_with_word, train_word, word_arguments


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_with_word(tmp_path_factory.mktemp("images") / "data", count=2)


def test_help_and_mistakes_load_no_heavy_library():
    probe = (
        "import sys, train_textual_inversion as t; from library.cli.entry import run_entry\n"
        "try: status = run_entry(lambda: t.train(sys.argv[1:]))\n"
        "finally: print([name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules])"
    )
    for argv in (["--help"], ["--token_string", "fox"]):
        done = subprocess.run([sys.executable, "-c", probe, *argv], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.endswith("[]\n") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"token_string": None}, "--token_string is missing", "it is required"),
        ({"token_string": "fox"}, "fox is in the model's vocabulary already", "such as <fox>"),
        ({"token_string": "shs"}, "shs is in the model's vocabulary already", "such as <shs>"),
        ({"token_string": "*"}, "is in the model's vocabulary already", "does not know"),
        ({"token_string": "my fox"}, "--token_string 'my fox' is empty or has spaces", "without spaces"),
        ({"token_string": "(fox)"}, "has characters of the caption syntax", "<my-dog>"),
        ({"token_string": "<cow>"}, "is in none of 2 captions, such as fox_01.png", "--use_object_template"),
        ({"use_object_template": True, "use_style_template": True}, "cannot be combined", "give one of them"),
        ({"init_word": " "}, "--init_word is empty", "leave it out"),
        ({"weights": "nowhere.pt"}, "--weights nowhere.pt does not exist", "embedding file"),
        ({"weights": __file__}, "unknown kind of file '.py'", ".safetensors, .pt"),
        ({"save_model_as": "diffusers"}, "--save_model_as diffusers is not valid", "safetensors, ckpt, pt"),
        ({"num_vectors_per_token": -1}, "--num_vectors_per_token -1 is not valid", "1 or more"),
        ({"cache_text_encoder_outputs": True}, "--cache_text_encoder_outputs: the text encoder", "leave it out"),
        ({"cache_text_encoder_outputs_to_disk": True}, "--cache_text_encoder_outputs: the text", "leave it out"),
    ],
)
def test_found_before_anything_is_loaded(images, tmp_path, options, message, hint):
    with pytest.raises(UserError) as raised:
        train_textual_inversion.train(word_arguments(images, tmp_path / "out", **options))
    assert message in str(raised.value) and hint in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_template_needs_no_word_in_captions(images, tmp_path):
    word = train_word(images, tmp_path, token_string="<cow>", use_object_template=True, max_train_steps=1)
    assert word.vectors.shape == (1, 1, 64)


def _of_width(folder, width):
    save_file({"emb_params": torch.ones(2, width)}, folder / "word.safetensors")
    return {"weights": folder / "word.safetensors"}


def _of_layers(folder, layers):
    save_file({layer: torch.ones(1, 64) for layer in layers}, folder / "word.safetensors")
    return {"weights": folder / "word.safetensors"}


SD15 = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{number:02d}" for number in range(3, 12))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: _of_width(path, 768), "has vectors of width 768, the model's text encoder has 64"),
        (lambda path: {**_of_width(path, 64), "num_vectors_per_token": 3}, "--num_vectors_per_token 3, but --weights"),
        (lambda path: _of_layers(path, SD15), "has separate vectors for 16 cross-attention layers"),
        (lambda path: {**_of_layers(path, SD15), "xti": True}, "vectors for 16 layers, the model's U-Net has 7: IN01"),
        (lambda path: {"weights": IMAGES / "fox_01.png"}, "--weights .*fox_01.png is an image without the text"),
        (
            lambda path: {"weights": BASE / "vae" / "diffusion_pytorch_model.safetensors"},
            "tensors .* not one embedding",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(images, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        train_word(images, tmp_path / "out", **make(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_string": "<cow>", "use_object_template": True}, f"--token_string {WORD}, this one <cow>"),
        ({"num_vectors_per_token": 2}, "--num_vectors_per_token not given, this one 2"),
        ({"xti": True}, "--xti off, this one on"),
    ],
)
def test_a_state_of_another_word_is_refused(images, tmp_path, options, message):
    train_word(images, tmp_path, save_every_n_steps=1, save_state=True, max_train_steps=2)
    with pytest.raises(UserError, match=message):
        train_word(images, tmp_path / "again", **options, resume=tmp_path / "run-step00000001-state")
