"""If these fail, captions are not those of the model, change with how a run is made, or get lost."""

from __future__ import annotations

import json
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BlipForConditionalGeneration, GitForCausalLM
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from library.captioning.caption_images import BLIP_JOB, GIT_JOB
from library.data.randomness import keyed_random
from tests.captioning_models import write_blip, write_git
from tests.end_to_end.launches import TWO_PROCESSES, ended, start

SEED, TOP_P, MIN_LENGTH, MAX_LENGTH = 42, 0.9, 5, 75  # the defaults


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return write_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    return write_git(tmp_path_factory.mktemp("git"))


@pytest.fixture
def images(tmp_path):
    """Eight images of as many sizes, two of them in a subfolder."""
    rng = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    for number in range(8):
        colours = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        folder = tmp_path / "sub" if number > 5 else tmp_path
        Image.fromarray(colours).resize((40 + number * 5, 60), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def caption(run, blip):
    return lambda *argv: run(BLIP_JOB, *argv, "--caption_weights", blip)


def captions(folder, ending=".caption"):
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob(f"*{ending}")}
    return {name.removesuffix(ending): text.removesuffix("\n") for name, text in sorted(found.items())}


@torch.inference_mode()
def sampled(folder, name, model_folder):
    """The caption by the definition: one token after the other, each from the whole sequence before it."""
    model = BlipForConditionalGeneration.from_pretrained(model_folder).eval()
    pixels = BlipImageProcessorPil.from_pretrained(model_folder)(Image.open(folder / name), return_tensors="pt")
    seen = model.vision_model(**pixels)[0]
    config = model.config.text_config
    tokens = [config.bos_token_id]
    while len(tokens) < MAX_LENGTH and tokens[-1] != config.sep_token_id:
        logits = model.text_decoder(torch.tensor([tokens]), encoder_hidden_states=seen).logits[0, -1]
        weights = np.exp(logits.double().numpy())
        if len(tokens) < MIN_LENGTH:
            weights[config.sep_token_id] = 0
        weights /= weights.sum()
        nucleus, total = [], 0.0
        for token in np.argsort(-weights):
            nucleus.append(token)
            total += weights[token]
            if total >= TOP_P:
                break
        number, below = keyed_random("caption", SEED, name, len(tokens)).random() * total, 0.0
        for token in nucleus:
            below += weights[token]
            if number < below:
                break
        tokens.append(int(token))
    return AutoTokenizer.from_pretrained(model_folder).decode(tokens, skip_special_tokens=True).strip()


def test_random_captions_are_those_of_the_definition_whatever_the_batch(images, caption, blip):
    assert caption(images, "--recursive").lines[-1] == "8 captioned"
    expected = {name.removesuffix(".png"): sampled(images, name, blip) for name in ("0.png", "3.png", "sub/7.png")}
    first = captions(images)
    assert {name: first[name] for name in expected} == expected
    assert len(set(first.values())) == 8
    for batch_size, threads in ((3, 0), (8, 4)):
        again = caption(images, "--recursive", "--overwrite", "--batch_size", batch_size, "--max_data_loader", threads)
        assert again.status == 0 and captions(images) == first
    for path in images.glob("[0-4].*"):
        path.unlink()
    assert caption(images, "--recursive", "--overwrite", "--batch_size", 2).status == 0
    assert captions(images) == {name: text for name, text in first.items() if name in ("5", "sub/6", "sub/7")}
    assert caption(images, "--overwrite", "--seed", 43).status == 0
    assert captions(images)["5"] != first["5"]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_beam_search_gives_what_transformers_gives_for_each_image_alone(num_beams, images, caption, blip):
    assert caption(images, "--beam_search", "--num_beams", num_beams, "--batch_size", 4, "--max_length", 20).status == 0
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor, tokenizer = BlipImageProcessorPil.from_pretrained(blip), AutoTokenizer.from_pretrained(blip)
    for name, text in captions(images).items():
        pixels = processor(Image.open(images / f"{name}.png"), return_tensors="pt")
        tokens = model.generate(**pixels, num_beams=num_beams, max_length=20, min_length=MIN_LENGTH)
        assert text == tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


def test_git_gives_what_transformers_gives_for_each_image_alone(images, run, git):
    assert run(GIT_JOB, images, "--model_id", git, "--batch_size", 4).lines[-1] == "6 captioned"
    model = GitForCausalLM.from_pretrained(git).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(git), AutoTokenizer.from_pretrained(git)
    for name, text in captions(images).items():
        pixels = processor(Image.open(images / f"{name}.png"), return_tensors="pt")
        tokens = model.generate(**pixels, max_length=50)
        assert text == tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
    assert len(set(captions(images).values())) > 1


def test_what_exists_is_kept_and_a_run_that_stopped_goes_on(images, caption):
    assert caption(images).status == 0
    first = captions(images)
    (images / "0.caption").unlink()
    (images / "1.caption").write_text("my own")
    said = caption(images)
    assert said.lines[-1] == "1 captioned, 5 skipped (they have a .caption file, which --overwrite replaces)"
    assert captions(images) == {**first, "1": "my own"}
    words = ("--caption_extention", "txt", "--prefix", "p ", "--postfix", ", q")
    assert caption(images, *words).status == 0
    assert captions(images, ".txt") == {name: f"p {text}, q" for name, text in first.items()}


def test_an_image_that_cannot_be_read_is_named_and_the_others_have_the_same_captions(images, caption):
    assert caption(images, "--batch_size", 3).status == 0
    first = captions(images)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:100])
    (images / "empty.jpg").touch()
    said = caption(images, "--batch_size", 3, "--overwrite")
    assert said.status == 1 and said.lines[-1] == "5 captioned, 2 failed"
    assert "1.png cannot be read" in said.lines[-3] and "empty.jpg cannot be read: the file is empty" in said.lines[-2]
    assert captions(images) == first  # the earlier caption of the broken one stays


def test_a_caption_that_cannot_be_written_is_named(images, caption):
    (images / "2.caption").mkdir()
    said = caption(images, "--overwrite")
    assert said.status == 1 and "2.png: what it gave cannot be written" in said.lines[-2]
    assert sorted(path.name for path in images.glob("*.caption")) == [f"{number}.caption" for number in range(6)]
    assert list(images.glob(".tmp*")) == []


@pytest.fixture
def broken(blip, tmp_path_factory):
    def broken(damage):
        folder = tmp_path_factory.mktemp("broken") / "blip"
        shutil.copytree(blip, folder)
        weights = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        if damage == "a weight":
            weights.pop("vision_model.post_layernorm.weight")
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        elif damage == "cut":
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
        elif damage == "kind":
            (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip-2"}))
        else:
            (folder / damage).unlink()
        return folder

    return broken


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("a weight", "1 of its weights are missing or have another shape, the first is vision_model.post_layernorm"),
        ("cut", "cannot be loaded"),
        ("kind", "is a model of the kind blip-2, not blip"),
        ("config.json", "has no config.json"),
        ("model.safetensors", "cannot be loaded"),
        ("processor_config.json", "cannot be loaded"),
    ],
)
def test_a_model_that_is_not_whole_captions_nothing(damage, named, images, run, broken):
    said = run(BLIP_JOB, images, "--caption_weights", broken(damage))
    assert said.status == 2 and named in said.error[0] and said.error[1].startswith("  ")
    assert captions(images) == {}


def test_the_other_script_is_named_for_the_other_kind_of_model(images, run, git, blip):
    assert "use make_captions_by_git.py" in run(BLIP_JOB, images, "--caption_weights", git).error[1]
    assert "use make_captions.py" in run(GIT_JOB, images, "--model_id", blip).error[1]


@pytest.mark.parametrize("name", [None, "model_large_caption.pth", "https://host/BLIP/models/model_large_caption.pth"])
def test_without_a_model_and_a_network_it_is_said_what_to_put_where(name, images, run, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (images / "0.png").write_bytes(b"x")
    said = run(BLIP_JOB, images, *(() if name is None else ("--caption_weights", name)))
    assert said.status == 2 and said.error[0].startswith("--caption_weights Salesforce/blip-image-captioning-large: no")
    assert "give the path of a folder with its config.json" in said.error[1]
    assert (name is None) or f"--caption_weights {name}: Salesforce/blip" in said.lines[0]
    assert not any("0.png" in line for line in said.lines)  # no image was read


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--min_length", 80), "--min_length 80 is larger than --max_length 75"),
        (("--top_p", 0), "--top_p 0 is not valid"),
        (("--caption_extension", ".webp"), "--caption_extension .webp is that of images"),
        (("--device", "cuda"), "--device cuda: PyTorch finds no GPU"),
        (("--batch_size", "x"), "--batch_size x is not valid"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(words, named, images, caption):
    said = caption(images, *words)
    assert said.status == 2 and named in said.error[0] and said.error[1].startswith("  ")


@pytest.mark.slow
def test_two_processes_caption_what_one_does(images, caption, blip):
    assert caption(images, "--recursive").status == 0
    first = captions(images)
    for path in images.rglob("*.caption"):
        path.unlink()
    words = [str(images), "--recursive", "--caption_weights", str(blip), "--batch_size", "3"]
    assert "8 captioned" in ended(start(words, *TWO_PROCESSES, script="finetune/make_captions.py"))
    assert captions(images) == first
