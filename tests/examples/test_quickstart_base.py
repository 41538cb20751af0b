"""If these fail, the quickstart's base model cannot be made again."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from base_images import FORTY, SHARES, draw_images
from base_model import random_model
from base_vae import VaeSteps, random_vae, read_images, train_vae
from diffusers import AutoencoderKL, StableDiffusionPipeline
from drawing import COLOURS, SHAPES
from PIL import Image
from sampling import HERE, load, through_vae
from scoring import score_shape

from tests import programs

QUICKSTART = HERE.parent
TOKENIZER = QUICKSTART / "base" / "tokenizer"
ENTRIES = {
    "bear": ("Animals & Nature", "animal-mammal", "bear"),
    "tophat": ("Objects", "clothing", "top_hat"),
    "polar_bear": ("Animals & Nature", "animal-mammal", "koala"),
    "fox_face": ("Animals & Nature", "animal-mammal", "frog"),
    "flag-fr": ("Flags", "country-flag", "gem"),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of five emoji, with the reference emoji as images: a fox and a flag among them."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "img" / "google" / "64").mkdir(parents=True)
    entries = []
    for name, (category, subcategory, image) in ENTRIES.items():
        shutil.copy(HERE / "reference" / f"{image}.png", folder / "img" / "google" / "64" / f"{name}.png")
        entry = {"short_name": name, "category": category, "subcategory": subcategory, "image": f"{name}.png"}
        entries.append(entry | {"has_img_google": True})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def images(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder, package, 150, 1, TOKENIZER / "vocab.json")
    return folder


def captions(folder):
    return {name: entry["caption"] for name, entry in json.loads((folder / "metadata.json").read_text()).items()}


def test_captions_say_what_is_drawn(images):
    """By the evaluation's scores, which look at the image alone."""
    right = []
    for name, caption in captions(images).items():
        words = re.fullmatch(
            r"(?:(?:a photo|a picture|an image) of )?an? (?:(small|big) )?(\w+) (?:\w+ )?(\w+)"
            r"(?: (?:on|at) the (left|right|top|bottom))? on an? (\w+) background",
            caption,
        )
        assert re.search(f" on an? ({'|'.join(COLOURS)}) background$", caption), caption
        if words and words[2] in COLOURS and words[3] in SHAPES:
            item = {"colour": words[2], "shape": words[3], "background": words[5], "position": words[4] or ""}
            right.append(score_shape(np.asarray(Image.open(images / name)), item))
    assert len(right) > 0.2 * SHARES["shape"] * 150
    assert {name for score in right for name, hit in score.items() if not hit} == set()


def test_the_fox_is_left_to_be_learnt(images):
    drawn = " ".join(captions(images).values())
    assert "polar bear" in drawn and "top hat" in drawn and "animal" in drawn
    assert not re.search("fox|flag", drawn)


def test_an_image_depends_on_seed_and_number_alone(package, images, tmp_path):
    draw_images(tmp_path / "few", package, 4, 1, TOKENIZER / "vocab.json")
    draw_images(tmp_path / "other", package, 4, 2, TOKENIZER / "vocab.json")
    for number in range(4):
        file = f"{number:06d}.png"
        assert (tmp_path / "few" / file).read_bytes() == (images / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (images / file).read_bytes()


def test_the_forty_words_are_those_of_the_evaluation():
    asked = {item["word"] for item in json.loads((HERE / "prompts.json").read_text())["emoji"]}
    assert set(FORTY.values()) == asked


@pytest.fixture(scope="module")
def vae(images, tmp_path_factory):
    """The folder of a VAE after a few steps."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    train_vae(read_images(images)[:40], VaeSteps(3, 2, crop_batch=4, decoder_batch=2), 3, folder)
    return folder


def test_the_decoder_alone_leaves_the_latents_as_they_were(vae):
    """The scaling factor would be wrong otherwise: it makes latents of standard deviation 1."""
    crops, whole = (AutoencoderKL.from_pretrained(path) for path in (vae.with_name("vae-crops"), vae))
    changed = {
        name.split(".")[0]
        for name, weight in whole.state_dict().items()
        if not torch.equal(weight, crops.state_dict()[name])
    }
    assert "decoder" in changed and changed <= {"decoder", "post_quant_conv"}


def test_latents_have_unit_variance(vae, images):
    model = AutoencoderKL.from_pretrained(vae).float()
    with torch.no_grad():
        latents = model.encode(read_images(images)[:40].float() / 127.5 - 1).latent_dist.mean
    assert latents.std().item() * model.config.scaling_factor == pytest.approx(1, rel=0.01)


def test_the_vae_is_the_same_for_one_seed(vae, images, tmp_path):
    train_vae(read_images(images)[:40], VaeSteps(3, 2, crop_batch=4, decoder_batch=2), 3, tmp_path / "vae")
    file = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "vae" / file).read_bytes() == (vae / file).read_bytes()


def test_the_model_has_the_parts_that_the_readme_lists(vae, tmp_path):
    folder = random_model(tmp_path / "model", vae, TOKENIZER, 1)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (pipe.text_encoder, pipe.unet, random_vae())]
    assert [round(size / 1e6, 1) for size in sizes] == [3.3, 4.7, 1.1]


@pytest.mark.slow
def test_one_command_makes_a_base_model(package, tmp_path):
    lengths = {"images": 64, "vae_steps": 4, "decoder_steps": 2, "steps": 3, "batch_size": 16}
    flags = [part for name, value in lengths.items() for part in (f"--{name}", str(value))]
    command = [QUICKSTART / "make_base.py", "--emoji", package, "--output", tmp_path / "made", *flags]
    done = programs.run(command)
    assert done.returncode == 0, done.stderr
    model = tmp_path / "made" / "model"
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 20e6
    image, psnr = through_vae(load(model, "cpu"), np.full((64, 64, 3), 128, np.uint8))
    assert image.shape == (64, 64, 3) and np.isfinite(psnr)
