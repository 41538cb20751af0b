"""If these fail, an inpainting model learns from other masks or images than its pipelines will give it.

The same few steps are done by a loop written here from the parts of Diffusers' inpaint pipeline, which also makes the
mask and the masked latents of the U-Net's input. It shares with the program the images' pixels, the order of the plan
and the keys of the random numbers, which other tests look at.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from library.cli.errors import UserError
from library.data.caches.latent_cache import latent_seed
from library.data.config.options import DatasetOptions, InpaintingOptions
from library.data.images.decoding import load_image
from library.data.images.inpaint_masks import MaskShares
from library.data.load_data import load_training_data
from library.data.randomness import derive_seed
from tests.end_to_end import sdxl_runs
from tests.end_to_end.launches import TWO_PROCESSES, launch
from tests.end_to_end.runs import BASE, IMAGES, REGULARISATION, arguments, assert_same, logged, train
from tests.end_to_end.test_against_a_plain_loop import attach_lora
from tests.end_to_end.test_sdxl import adapters_of
from tests.end_to_end.whole_models import train_whole
from tests.end_to_end.word_runs import train_word
from tests.tiny_inpainting_models import MAKERS, write_inpainting_base

SEED, RATE, STEPS, PRIOR = 7, 0.1, 3, 0.5
SHARES = InpaintingOptions().mask_shares
DATASET = """
[general]
caption_extension = ".txt"
[[datasets]]
resolution = 64
batch_size = 2
[[datasets.subsets]]
image_dir = '{folder}/plain'
[[datasets.subsets]]
image_dir = '{folder}/masked'
conditioning_data_dir = '{folder}/masks'
[[datasets.subsets]]
image_dir = '{folder}/clear'
alpha_mask = true
[[datasets.subsets]]
image_dir = '{reg}'
is_reg = true
"""
OPTIONS = {
    "resolution": None,
    "enable_bucket": None,
    "train_data_dir": None,
    "prior_loss_weight": PRIOR,
    "max_grad_norm": 0,
    "optimizer_type": "SGD",
    "seed": SEED,
    "max_train_steps": STEPS,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_inpainting_base(tmp_path_factory.mktemp("inpainting") / "base")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Images whose masks are drawn, given by mask images, and by alpha channels; and regularisation images."""
    folder = tmp_path_factory.mktemp("data")
    images = sorted(IMAGES.glob("*.png"))[:5]
    rng = np.random.default_rng(0)
    for index, path in enumerate(images):
        target = folder / ("plain" if index < 2 else "masked" if index < 4 else "clear") / path.name
        target.parent.mkdir(exist_ok=True)
        with Image.open(path) as found:
            image = found.convert("RGB").resize((64, 64))
            levels = Image.fromarray(rng.choice(np.array([0, 255], np.uint8), (8, 8))).resize(image.size, 0)
            if index == 4:
                image.putalpha(levels)
            image.save(target)
        target.with_suffix(".txt").write_text(path.with_suffix(".txt").read_text())
        if index in (2, 3):
            (folder / "masks").mkdir(exist_ok=True)
            levels.save(folder / "masks" / path.name)
    (folder / "data.toml").write_text(DATASET.format(folder=folder, reg=REGULARISATION))
    return folder / "data.toml"


def input_of(pipe, key, position):
    """The scaled latents of an image, and mask and masked latents as the pipeline makes them."""
    width, height = key.placement.bucket
    pixels = torch.from_numpy(load_image(key).pixels)[None]
    if key.masked.masked_by == "given":
        if key.mask_path is None:
            with Image.open(key.path) as image:
                shown = 255 - np.asarray(image.getchannel("A"))
        else:
            with Image.open(key.mask_path) as image:
                shown = np.asarray(image.convert("L"))
        assert shown.shape == (height, width)  # nothing is resized here
        mask = torch.from_numpy((shown >= 128).astype(np.float32))[None, None]
    else:
        drawn = MaskShares(SHARES).draw((width, height), derive_seed("inpainting mask", SEED, 0, position))
        mask = torch.from_numpy(drawn.astype(np.float32))[None, None]
    noise = torch.randn((1, 4, height // 8, width // 8), generator=torch.Generator().manual_seed(latent_seed(key)))
    scaled = []
    for image in (pixels, pixels * (mask < 0.5)):
        posterior = pipe.vae.encode(image).latent_dist
        scaled.append((posterior.mean + posterior.std * noise) * pipe.vae.config.scaling_factor)
    small, masked = pipe.prepare_mask_latents(mask, scaled[1], 1, height, width, torch.float32, "cpu", None, False)
    return scaled[0], small, masked


def conditions_of(pipe, records, latents):
    """What the U-Net takes beside latents and timesteps."""
    if hasattr(pipe, "text_encoder_2"):
        return sdxl_runs.conditions_of(pipe, records, latents)
    ids = pipe.tokenizer([record.caption for record in records], padding="max_length", return_tensors="pt").input_ids
    return {"encoder_hidden_states": pipe.text_encoder(ids)[0]}


def loss_of(pipe, data, micro_batch):
    (dataset,) = data.datasets
    indices = [int(dataset.items[item]) for item in micro_batch.item_indices]
    records = [dataset.records[index] for index in indices]
    with torch.no_grad():
        inputs = [
            input_of(pipe, dataset.latent_key(index, False), micro_batch.first_position + offset)
            for offset, index in enumerate(indices)
        ]
        latents, masks, masked = (torch.cat(each) for each in zip(*inputs, strict=True))
    generator = torch.Generator().manual_seed(derive_seed("noise", SEED, micro_batch.epoch, micro_batch.index))
    timesteps = torch.randint(0, 1000, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = torch.cat([pipe.scheduler.add_noise(latents, noise, timesteps), masks, masked], dim=1)
    prediction = pipe.unet(noisy, timesteps, **conditions_of(pipe, records, latents)).sample
    weights = torch.tensor([PRIOR if record.is_reg else 1.0 for record in records])
    return (((prediction - noise) ** 2).mean(dim=(1, 2, 3)) * weights).mean()


def plain_steps(pipe, params, dataset, accumulation) -> list[float]:
    """The losses of some steps of SGD, which change the parameters."""
    data, losses = load_training_data(DatasetOptions(dataset_config=str(dataset))), []
    pipe.vae.requires_grad_(False)
    plan = data.batches_of_epoch(SEED, 0)
    for step in range(STEPS):
        batches = plan[step * accumulation : (step + 1) * accumulation]
        loss = sum(loss_of(pipe, data, batch) for batch in batches) / len(batches)
        losses.append(loss.item())
        for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
            with torch.no_grad():
                param -= RATE * gradient
    return losses


def assert_alike(found, expected, start) -> None:
    assert found.keys() == expected.keys()
    errors = torch.cat([(tensor - found[name]).flatten() for name, tensor in expected.items()])
    changes = torch.cat([(tensor - start[name]).flatten() for name, tensor in expected.items()])
    assert errors.abs().max() < 1e-6, errors.abs().max()
    assert changes.abs().max() > 5e-4  # what is compared is not nothing


def test_a_model_made_of_one_for_text_to_image_is_trained_as_a_loop_of_diffusers_parts_does(dataset, tmp_path):
    """Its first layer too, whose new channels begin with zeros: the first loss is that of the plain model."""
    train_whole(
        "train_db", None, tmp_path / "out", **OPTIONS, dataset_config=dataset, learning_rate=RATE,
        train_inpainting=True, gradient_accumulation_steps=2, stop_text_encoder_training=0,
        logging_dir=tmp_path / "out" / "logs",
    )  # fmt: skip
    pipe = StableDiffusionInpaintPipeline.from_pretrained(BASE, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.text_encoder.requires_grad_(False)
    old, wide = pipe.unet.conv_in, torch.nn.Conv2d(9, pipe.unet.conv_in.out_channels, 3, padding=1)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :4], wide.bias[:] = old.weight, old.bias
    pipe.unet.conv_in = wide
    start = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    losses = plain_steps(pipe, list(pipe.unet.parameters()), dataset, accumulation=2)
    saved = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out" / "run", torch_dtype=torch.float32)
    assert saved.unet.config.in_channels == 9
    assert_alike(saved.unet.state_dict(), pipe.unet.state_dict(), start)
    assert [value for _, value in logged(tmp_path / "out")] == pytest.approx(losses, rel=1e-5)
    assert saved.unet.conv_in.weight[:, 4:].abs().max() > 1e-4


def test_a_lora_on_an_inpainting_model_is_that_of_a_loop_of_diffusers_parts(base, dataset, tmp_path):
    """Without the flag; and what it says of itself."""
    options = {
        **OPTIONS, "dataset_config": dataset, "pretrained_model_name_or_path": base, "network_dim": 4,
        "network_alpha": 2.0, "network_train_unet_only": True,
    }  # fmt: skip
    start = train(None, tmp_path / "0", **{**options, "max_train_steps": 1}, learning_rate=0)
    found = train(None, tmp_path / "1", **options, learning_rate=RATE)
    pipe = StableDiffusionInpaintPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    params = attach_lora(pipe, start)
    losses = plain_steps(pipe, list(params.values()), dataset, accumulation=1)
    assert_alike({name: found[name] for name in params}, {name: each.detach() for name, each in params.items()}, start)
    assert [value for _, value in logged(tmp_path / "1")] == pytest.approx(losses, rel=1e-5)
    with safe_open(tmp_path / "1" / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_inpainting"] == "true" and metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_a_lora_on_an_sdxl_inpainting_model_is_that_of_a_loop_of_diffusers_parts(dataset, tmp_path):
    base = MAKERS["sdxl"](tmp_path / "base").folder
    options = {
        **OPTIONS, "dataset_config": dataset, "network_dim": 4, "network_alpha": 2.0, "network_train_unet_only": True,
        "train_inpainting": True,
    }  # fmt: skip

    def trained(name: str, **settings) -> Path:
        logs = tmp_path / name / "logs"
        return sdxl_runs.run(
            "sdxl_train_network", base, None, tmp_path / name, **{**options, **settings}, logging_dir=logs
        )

    def pipeline_with(adapter: Path) -> StableDiffusionXLInpaintPipeline:
        pipe = StableDiffusionXLInpaintPipeline.from_pretrained(base, torch_dtype=torch.float32)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.load_lora_weights(str(adapter))
        return pipe

    pipe = pipeline_with(trained("0", learning_rate=0, max_train_steps=1))
    params = {name: param.requires_grad_() for name, param in adapters_of(pipe).items()}
    start = {name: param.detach().clone() for name, param in params.items()}
    ours = adapters_of(pipeline_with(trained("1", learning_rate=RATE)))
    losses = plain_steps(pipe, list(params.values()), dataset, accumulation=1)
    assert_alike(ours, {name: param.detach() for name, param in params.items()}, start)
    assert [value for _, value in logged(tmp_path / "1")] == pytest.approx(losses, rel=1e-6)


def test_caches_workers_and_resuming_change_no_bit(base, dataset, tmp_path):
    """Two epochs, flipped at random; given masks are cached with their images, others are drawn anew in each."""
    folder = Path(shutil.copytree(dataset.parent, tmp_path / "data"))
    text = DATASET.replace("[general]", "[general]\nflip_aug = true").format(folder=folder, reg=REGULARISATION)
    (folder / "data.toml").write_text(text)
    options = {
        **OPTIONS, "dataset_config": folder / "data.toml", "pretrained_model_name_or_path": base,
        "optimizer_type": None, "learning_rate": 1e-3, "max_train_steps": 6, "save_every_n_steps": 3,
        "save_state": True,
    }  # fmt: skip
    plain = train(None, tmp_path / "plain", **options)
    for name, settings in {
        "memory": {"cache_latents": True},
        "disk": {"cache_latents_to_disk": True, "max_data_loader_n_workers": 2},
        "disk again": {"cache_latents_to_disk": True},
        "workers": {"max_data_loader_n_workers": 2},
        "resumed": {"resume": tmp_path / "plain" / "run-step00000003-state"},
    }.items():
        assert_same(train(None, tmp_path / name, **{**options, **settings}), plain)
    cached = {path.name.split("_")[-1]: path for path in sorted(folder.rglob("*_inpaint.npz"))}
    assert set(cached) == {"inpaint.npz"} and len(list(folder.rglob("*_inpaint.npz"))) == 3  # of given masks alone
    with np.load(next(folder.rglob("masked/*_inpaint.npz"))) as file:
        assert {"latents_8x8", "latents_flipped_8x8", "inpaint_mask_8x8", "inpaint_mask_flipped_8x8"} <= set(file.files)


def write_alpha(path: Path, rng: np.random.Generator) -> None:
    with Image.open(path) as image:
        image.putalpha(Image.fromarray(rng.choice(np.array([0, 255], np.uint8), (64, 64))))
        image.save(path)


def write_shards(images: Path, shards: Path) -> None:
    """The images of a folder with their captions, in its order: two in the first shard."""
    files = sorted(images.iterdir())
    for name, part in (("0.tar", files[:4]), ("1.tar", files[4:])):
        with tarfile.open(shards / name, "w") as archive:
            for file in part:
                archive.add(file, file.name)


def invert_cached_masks(path: Path) -> dict[str, np.ndarray]:
    """Gives the masks, by name, that a cache file of a shard has had."""
    with safe_open(path, "np") as file:
        facts, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    masks = {name: array for name, array in arrays.items() if name.endswith("|mask")}
    save_file({**arrays, **{name: 1 - mask for name, mask in masks.items()}}, path, facts)
    return masks


def assert_of_transparency(masks: dict[str, np.ndarray], images: Path) -> None:
    """1 where an image, or its mirror image, is more transparent than not: by nearest, as the pipeline does."""
    for name, mask in masks.items():
        (path,) = [each for each in images.glob("*.png") if each.stem in name]
        with Image.open(path) as image:
            shown = np.asarray(image.convert("RGBA").getchannel("A"))
        shown = shown[:, ::-1] if "|flipped|" in name else shown
        np.testing.assert_array_equal(mask, (shown < 128)[::8, ::8])


def test_caches_of_shards_change_no_bit_and_other_masks_make_them_anew(base, dataset, tmp_path):
    """The weights of the same images in a folder without caches; two of five images are not transparent."""
    images, shards, rng = tmp_path / "images", tmp_path / "shards", np.random.default_rng(1)
    shards.mkdir()
    shutil.copytree(dataset.parent / "clear", images)
    for path in sorted([*dataset.parent.glob("plain/*"), *dataset.parent.glob("masked/*.*")]):
        shutil.copy(path, images)
        if path.parent.name == "masked" and path.suffix == ".png":
            write_alpha(images / path.name, rng)
    write_shards(images, shards)
    files = {}
    for name, source in (("folder", f"image_dir = '{images}'"), ("shards", f"shards = '{shards}/{{0..1}}.tar'")):
        files[name] = tmp_path / f"{name}.toml"
        files[name].write_text(
            "[general]\nflip_aug = true\nalpha_mask = true\n[[datasets]]\nresolution = 64\nbatch_size = 2\n"
            f"[[datasets.subsets]]\n{source}\ncaption_extension = '.txt'\n"
        )

    def trained(name: str, source: str, **settings) -> dict[str, torch.Tensor]:
        options = {**OPTIONS, "pretrained_model_name_or_path": base, "optimizer_type": None, "max_train_steps": 5}
        options |= {"prior_loss_weight": None, "train_inpainting": True, "dataset_config": files[source], **settings}
        return train(None, tmp_path / name, **options)

    plain = trained("plain", "folder")
    assert_same(trained("shards", "shards"), plain)
    assert_same(trained("disk", "shards", cache_latents_to_disk=True, max_data_loader_n_workers=2), plain)
    cached = {path: path.stat().st_mtime_ns for path in shards.glob("*_latents.safetensors")}
    ours = {f"{number}.tar_sd{ending}_latents.safetensors" for number in (0, 1) for ending in ("", "_inpaint")}
    assert {path.name for path in cached} == ours
    assert_same(trained("again", "shards", cache_latents_to_disk=True), plain)
    assert all(path.stat().st_mtime_ns == written for path, written in cached.items())

    masks = [invert_cached_masks(path) for path in shards.glob("*_inpaint_latents.safetensors")]
    assert sum(map(len, masks)) == 10  # of each image and its mirror image
    for of_shard in masks:
        assert_of_transparency(of_shard, images)
    inverted = trained("inverted", "shards", cache_latents_to_disk=True)
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in inverted.items())  # they are what it reads

    for path in sorted(images.glob("*.png")):
        write_alpha(path, rng)
    write_shards(images, shards)
    other = trained("other", "folder")
    assert_same(trained("other shards", "shards", cache_latents_to_disk=True), other)
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in other.items())


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_twice_the_accumulation(base, dataset, tmp_path):
    options = {**OPTIONS, "dataset_config": dataset, "pretrained_model_name_or_path": base, "learning_rate": RATE}
    one = train(None, tmp_path / "one", **options, gradient_accumulation_steps=2, cache_latents=True)
    launch(arguments(None, tmp_path / "two", **options, cache_latents=True), *TWO_PROCESSES)
    with safe_open(tmp_path / "two" / "run.safetensors", "pt") as file:
        two = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    assert max((two[name] - tensor).abs().max() for name, tensor in one.items()) < 1e-6


def test_what_cannot_be_trained_is_said_in_one_line_before_the_model_is_loaded(base, dataset, tmp_path):
    options = {**OPTIONS, "dataset_config": dataset, "train_inpainting": True}
    for script, more in ((train, {}), (train_word, {"use_object_template": True})):
        with pytest.raises(
            UserError, match="takes no mask, and what train_.*py trains leaves its first layer"
        ) as caught:
            script(None, tmp_path / "out", **options, **more)
        assert "9 channels" in caught.value.hint
    for model in ({"pretrained_model_name_or_path": base, "train_inpainting": None}, {}):
        with pytest.raises(UserError, match="--masked_loss takes masks as weights of the loss"):
            train_whole("train_db", None, tmp_path / "out", **{**options, **model}, masked_loss=True)
    assert not (tmp_path / "out").exists()


def test_a_word_and_a_validation_loss_on_an_inpainting_model(base, dataset, tmp_path):
    """The masks of held-out images are the same each time: their loss changes by the weights alone."""
    options = {
        **OPTIONS, "optimizer_type": None, "pretrained_model_name_or_path": base, "dataset_config": dataset,
        "validation_split": 0.5, "validate_every_n_steps": 1, "cache_latents": True, "use_object_template": True,
    }  # fmt: skip
    train_word(None, tmp_path, **options, learning_rate=0)
    losses = [value for _, value in logged(tmp_path, "loss/validation")]
    assert len(losses) >= STEPS and len(set(losses)) == 1
    assert json.loads((base / "model_index.json").read_text())["_class_name"] == "StableDiffusionInpaintPipeline"
