"""Cached captions: what the text encoder would say, made anew when anything changed, refused where they cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from library.data.batches.loader import BatchDataset
from library.data.caches.text_cache import write_text_outputs
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import StepCounter
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import load_family
from library.models.text.tokenizer import SHIPPED_VOCABULARY
from library.training.inputs.text_outputs import TextSource, fixed_captions
from tests.tiny_models import make_tiny, write_folder

CAPTIONS = ["a cat, (sitting:1.2)", "a dog", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_folder(make_tiny(False), tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "1_x"
    folder.mkdir(parents=True)
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (64, 64), (number * 90, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.caption").write_text(caption, encoding="utf-8")
    return folder


def _data(images: Path, **options):
    return load_training_data(
        DatasetOptions(train_data_dir=str(images.parent), resolution=(64, 64), train_batch_size=3, **options)
    )


def _source(family, data, *, to_disk: bool) -> TextSource:
    caching = CachingOptions(cache_text_encoder_outputs=not to_disk, cache_text_encoder_outputs_to_disk=to_disk)
    source = TextSource(family, caching, Accelerator(), trains=False)
    source.fill_cache(data)
    return source


def _batch(data):
    clock = StepCounter(group_size=1, steps_per_epoch=1, num_steps=1)
    return BatchDataset(data, seed=1, clock=clock, latent_source="memory")[data.batches_of_epoch(1, 0)[0]]


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("prompts", [PromptOptions(), PromptOptions(2, 150, weighted_captions=True)])
def test_cached_captions_are_what_the_encoder_says(model: Path, images: Path, to_disk: bool, prompts) -> None:
    family, data = load_family(ModelOptions(str(model)), prompts), _data(images, caption_prefix="photo of")
    batch = _batch(data)
    source = _source(family, data, to_disk=to_disk)
    ours = source.conditioning_of(batch).hidden_states
    with torch.no_grad():
        expected = family.encode_prompts(batch.captions).hidden_states
    assert all(caption.startswith("photo of") for caption in batch.captions)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    files = sorted(path.name for path in images.glob("*_sd_te.npz"))
    assert files == ([f"{number}.png_sd_te.npz" for number in range(3)] if to_disk else [])


def test_files_are_used_again_until_caption_or_encoder_change(model: Path, images: Path) -> None:
    family, data = load_family(ModelOptions(str(model))), _data(images)
    _source(family, data, to_disk=True)
    first = {path: path.stat().st_mtime_ns for path in images.glob("*.npz")}
    _source(family, data, to_disk=True)
    assert {path: path.stat().st_mtime_ns for path in images.glob("*.npz")} == first

    (images / "1.caption").write_text("a wolf", encoding="utf-8")
    _source(family, _data(images), to_disk=True)
    changed = [path.name for path, time in first.items() if path.stat().st_mtime_ns != time]
    assert changed == ["1.png_sd_te.npz"]

    other = load_family(ModelOptions(str(model)))
    other.text_encoders[0].text_model.final_layer_norm.weight.data.add_(1)
    source = _source(other, _data(images), to_disk=True)
    batch = _batch(_data(images))
    with torch.no_grad():
        expected = other.encode_prompts(batch.captions).hidden_states
    torch.testing.assert_close(source.conditioning_of(batch).hidden_states, expected, atol=1e-5, rtol=0)


def test_outputs_of_other_prompt_options_are_not_used(model: Path, images: Path) -> None:
    """Outputs cached with the last layer would train a run with `--clip_skip 2` on the wrong ones."""
    data = _data(images)
    _source(load_family(ModelOptions(str(model))), data, to_disk=True)
    skipping = load_family(ModelOptions(str(model)), PromptOptions(clip_skip=2))
    batch = _batch(data)
    ours = _source(skipping, data, to_disk=True).conditioning_of(batch).hidden_states
    with torch.no_grad():
        torch.testing.assert_close(ours, skipping.encode_prompts(batch.captions).hidden_states, atol=1e-5, rtol=0)


def test_cached_outputs_that_are_not_finite_are_encoded_again(model: Path, images: Path) -> None:
    family, data = load_family(ModelOptions(str(model))), _data(images)
    batch = _batch(data)
    for number, caption in enumerate(CAPTIONS):
        states = {caption: np.full((77, 64), np.nan, np.float32)}
        outputs = {caption: {"hidden_states": each} for caption, each in states.items()}
        write_text_outputs(images / f"{number}.png_sd_te.npz", outputs, family.text_fingerprint())
    ours = _source(family, data, to_disk=True).conditioning_of(batch).hidden_states
    with torch.no_grad():
        torch.testing.assert_close(ours, family.encode_prompts(batch.captions).hidden_states, atol=1e-5, rtol=0)


def test_outputs_of_another_tokenizer_are_not_used(model: Path, images: Path, tmp_path: Path) -> None:
    family, data = load_family(ModelOptions(str(model))), _data(images)
    _source(family, data, to_disk=True)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    shutil.copytree(SHIPPED_VOCABULARY, other / "tokenizer", dirs_exist_ok=True)
    assert load_family(ModelOptions(str(other))).text_fingerprint() == family.text_fingerprint()
    vocabulary = json.loads((other / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
    (other / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    swapped = load_family(ModelOptions(str(other)))
    batch = _batch(data)
    ours = _source(swapped, data, to_disk=True).conditioning_of(batch).hidden_states
    with torch.no_grad():
        torch.testing.assert_close(ours, swapped.encode_prompts(batch.captions).hidden_states, atol=1e-5, rtol=0)
    assert not torch.equal(ours, family.encode_prompts(batch.captions).hidden_states)


def test_an_output_lost_to_another_process_is_encoded_again(model: Path, images: Path, caplog) -> None:
    family, data = load_family(ModelOptions(str(model))), _data(images)
    source, batch = _source(family, data, to_disk=True), _batch(data)
    whole = source.conditioning_of(batch).hidden_states
    (images / "1.png_sd_te.npz").unlink()
    assert torch.equal(source.conditioning_of(batch).hidden_states, whole)
    assert "1.png was removed or changed during training: encoded again" in caplog.text


def test_captions_of_two_subsets_that_spell_one_folder_differently_are_both_cached(model, images, tmp_path, caplog):
    (tmp_path / "link").symlink_to(images)
    toml = tmp_path / "data.toml"
    subsets = "".join(
        f'[[datasets]]\nresolution = {size}\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = "{folder}"\n'
        f'caption_prefix = "{size}"\n'
        for size, folder in ((64, images), (128, tmp_path / "link"))
    )
    toml.write_text(subsets, encoding="utf-8")
    data = load_training_data(DatasetOptions(dataset_config=str(toml)))
    family = load_family(ModelOptions(str(model)))
    source = _source(family, data, to_disk=True)
    clock = StepCounter(group_size=1, steps_per_epoch=1, num_steps=1)
    dataset = BatchDataset(data, seed=1, clock=clock, latent_source="memory")
    for micro_batch in data.batches_of_epoch(1, 0):
        source.conditioning_of(dataset[micro_batch])
    assert "encoded again" not in caplog.text


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 half a file"])
def test_a_damaged_file_is_made_anew(model: Path, images: Path, damage: bytes) -> None:
    family, data = load_family(ModelOptions(str(model))), _data(images)
    _source(family, data, to_disk=True)
    (images / "0.png_sd_te.npz").write_bytes(damage)
    _source(family, data, to_disk=True)
    with np.load(images / "0.png_sd_te.npz") as file:
        assert file["hidden_states_0"].shape == (77, 64)


@pytest.mark.parametrize("to_disk", [False, True])
def test_captions_that_are_hardly_ever_used_are_cached_as_they_are(model, images, to_disk, caplog) -> None:
    """The caption that is kept, and not the draw of whether it is, is cached."""
    family, data = load_family(ModelOptions(str(model))), _data(images, caption_dropout_rate=0.9)
    source = _source(family, data, to_disk=to_disk)
    assert set(fixed_captions(data).values()) == {(caption,) for caption in CAPTIONS}
    clock = StepCounter(group_size=1, steps_per_epoch=1, num_steps=1)
    dataset, seen = BatchDataset(data, seed=1, clock=clock, latent_source="memory"), set()
    for epoch in range(40):
        batch = dataset[data.batches_of_epoch(1, epoch)[0]]
        seen.update(batch.captions)
        source.conditioning_of(batch)
    assert seen == set(CAPTIONS) and "encoded again" not in caplog.text


@pytest.mark.parametrize("to_disk", [False, True])
def test_a_caption_that_is_left_out_is_encoded_too(model: Path, images: Path, to_disk: bool) -> None:
    family, data = load_family(ModelOptions(str(model))), _data(images, caption_dropout_rate=1.0)
    batch = _batch(data)
    assert batch.captions == ["", "", ""]
    ours = _source(family, data, to_disk=to_disk).conditioning_of(batch).hidden_states
    with torch.no_grad():
        torch.testing.assert_close(ours, family.encode_prompts([""] * 3).hidden_states, atol=1e-5, rtol=0)
