"""If these fail, other programs cannot load an embedding, or this one cannot continue training theirs."""

from __future__ import annotations

import base64
import copy
import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

from library.cli.errors import UserError
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.stable_diffusion.model import TABLE
from library.models.text.embedding_files import EmbeddingVectors, read_embedding, write_embedding
from library.models.text.token_embedding import TokenEmbedding

LAYERS = ("IN01", "MID", "OUT02", "OUT03")


def vectors(layers=1, count=2, width=64):
    generator = torch.Generator().manual_seed(4)
    return torch.randn((layers, count, width), generator=generator) * 0.05


def write(path, embedding, **options):
    write_embedding(
        path, embedding, **{"name": "<fox>", "dtype": torch.float32, "metadata": {"a": "b"}, "step": 7, **options}
    )
    return path


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_vectors_of_two_text_encoders_are_written_and_read_under_their_names(tmp_path, ending):
    tables = {"clip_l": torch.randn(1, 2, 8), "clip_g": torch.randn(1, 2, 12)}
    path = write(tmp_path / f"a.{ending}", EmbeddingVectors(tables))
    stored = load_file(path) if ending == "safetensors" else torch.load(path, weights_only=True)
    assert {name: tuple(each.shape) for name, each in stored.items()} == {"clip_l": (2, 8), "clip_g": (2, 12)}
    found = read_embedding(path)
    assert list(found.tables) == ["clip_l", "clip_g"] and not found.layers
    assert all(torch.equal(found.tables[name], tables[name]) for name in tables)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "ckpt"])
@pytest.mark.parametrize("layers", [(), LAYERS])
def test_what_is_written_is_read_back(tmp_path, ending, layers):
    embedding = EmbeddingVectors({"emb_params": vectors(len(layers) or 1)}, layers)
    found = read_embedding(write(tmp_path / f"embedding.{ending}", embedding))
    assert found.layers == layers and torch.equal(found.vectors, embedding.vectors)


def test_the_tensors_have_the_names_that_others_know(tmp_path):
    path = write(tmp_path / "a.safetensors", EmbeddingVectors({"emb_params": vectors()}), dtype=torch.float16)
    assert {name: (each.shape, each.dtype) for name, each in load_file(path).items()} == {
        "emb_params": ((2, 64), torch.float16)
    }
    contents = torch.load(write(tmp_path / "a.pt", EmbeddingVectors({"emb_params": vectors()})), weights_only=True)
    assert torch.equal(contents["string_to_param"]["*"], vectors()[0])
    assert (contents["string_to_token"], contents["name"], contents["step"]) == ({"*": 265}, "<fox>", 7)
    path = write(tmp_path / "b.safetensors", EmbeddingVectors({"emb_params": vectors(4)}, LAYERS))
    assert {name: tuple(each.shape) for name, each in load_file(path).items()} == dict.fromkeys(LAYERS, (2, 64))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_reads_it_and_its_text_encoder_says_the_same(tmp_path, tiny, folder, ending, count):
    """Both generations: in a pipeline of Diffusers the prompt has the hidden states that training had."""
    path = write(tmp_path / f"embedding.{ending}", EmbeddingVectors({"emb_params": vectors(count=count)}))
    pipe = StableDiffusionPipeline(
        vae=tiny.vae,
        text_encoder=copy.deepcopy(tiny.text_encoder),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77),
        unet=tiny.unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_textual_inversion(str(path), token="<fox>")
    options = ModelOptions(pretrained_model_name_or_path=str(folder))
    family = load_family(options)
    family.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", read_embedding(path).vectors)})
    prompt = "a photo of <fox> on a hill"
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        found = family.encode_prompts([prompt]).hidden_states
    # behind the end of the prompt each pads as its tokenizer's settings say
    length = 2 + family.count_tokens([prompt])[0]
    torch.testing.assert_close(found[:, :length], expected[:, :length])


def image_with(tmp_path, text, key="sd-ti-embedding"):
    texts = PngImagePlugin.PngInfo()
    texts.add_text(key, text)
    Image.new("RGB", (64, 64)).save(tmp_path / "embedding.png", pnginfo=texts)
    return tmp_path / "embedding.png"


def encoded(parameters):
    return base64.b64encode(json.dumps({"string_to_param": parameters, "name": "x", "step": 3}).encode()).decode()


def test_files_of_other_programs_are_read(tmp_path):
    expected = vectors()
    save_file({"<cat-toy>": expected[0]}, tmp_path / "diffusers.safetensors")
    torch.save({"<cat-toy>": expected[0]}, tmp_path / "diffusers.bin")
    web_ui = {"string_to_token": {"*": 265}, "name": "x", "step": 2, "sd_checkpoint": None}
    torch.save({**web_ui, "string_to_param": {"*": nn.Parameter(expected[0])}}, tmp_path / "web_ui.pt")
    first = nn.ParameterDict({"*": nn.Parameter(expected[0])})  # as the paper's program wrote them
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": first}, tmp_path / "paper.pt")
    save_file({"emb_params": expected[0].half()}, tmp_path / "half.safetensors")
    image = image_with(tmp_path, encoded({"*": {"TORCHTENSOR": expected[0].tolist()}}))
    for name in ("diffusers.safetensors", "diffusers.bin", "web_ui.pt", "paper.pt", image.name):
        found = read_embedding(tmp_path / name)
        assert torch.equal(found.vectors, expected) and found.layers == (), name
    torch.testing.assert_close(read_embedding(tmp_path / "half.safetensors").vectors, expected, rtol=1e-3, atol=1e-4)


def test_a_single_vector_without_a_row_of_its_own_is_one(tmp_path):
    torch.save({"<cat-toy>": vectors()[0, 0]}, tmp_path / "one.bin")
    assert torch.equal(read_embedding(tmp_path / "one.bin").vectors, vectors()[:, :1])


def _two_words(path):
    torch.save({"<a>": vectors()[0], "<b>": vectors()[0]}, path / "x.bin")
    return path / "x.bin"


def _sdxl(path):
    save_file({"clip_l": vectors()[0], "clip_g": vectors()[0][:1]}, path / "x.safetensors")
    return path / "x.safetensors"


def _of_numbers(path, tensor):
    save_file({"emb_params": tensor}, path / "x.safetensors")
    return path / "x.safetensors"


def _code(path):
    class Runs:
        def __reduce__(self):
            return open, (str(path / "it-ran"), "w")

    torch.save({"string_to_param": {"*": vectors()[0]}, "extra": Runs()}, path / "x.pt")
    return path / "x.pt"


def _uneven(path):
    save_file({"IN01": vectors()[0], "MID": vectors(count=3)[0]}, path / "x.safetensors")
    return path / "x.safetensors"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_two_words, r"x.bin holds 2 tensors \(<a>, <b>\), not one embedding"),
        (_sdxl, "its text encoders have different numbers of vectors"),
        (lambda path: _of_numbers(path, torch.ones(2, 8, dtype=torch.int64)), "emb_params is torch.int64"),
        (lambda path: _of_numbers(path, torch.ones(2, 8, 1)), r"emb_params is torch.float32 of shape \(2, 8, 1\)"),
        (lambda path: _of_numbers(path, torch.full((2, 8), torch.nan)), "holds NaN or inf"),
        (_code, "x.pt is refused: it is a pickle with code"),
        (_uneven, "its layers have different numbers of vectors"),
        (lambda path: image_with(path, "no base64!"), "its text sd-ti-embedding is damaged"),
        (lambda path: image_with(path, encoded({"*": [1, 2]})), "its text sd-ti-embedding is damaged"),
        (lambda path: image_with(path, encoded({"*": {"TORCHTENSOR": [[1.0], [1.0, 2.0]]}})), "is damaged"),
        (lambda path: image_with(path, "a prompt", "parameters"), "without the text sd-ti-embedding"),
    ],
)
def test_what_is_no_embedding_is_refused_by_name(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        read_embedding(make(tmp_path))
    assert not (tmp_path / "it-ran").exists()


def test_a_image_that_is_cut_off_is_refused(tmp_path):
    path = image_with(tmp_path, encoded({"*": {"TORCHTENSOR": vectors()[0].tolist()}}))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="embedding.png"):
        read_embedding(path)
