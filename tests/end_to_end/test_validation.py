"""If these fail, the validation curve is no measure of what was learned, or measuring changes what is learned."""

import math
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from library.data.caches.latent_cache import latent_seed
from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.randomness import derive_seed
from library.training.evaluation.validation import timestep_grid
from tests.end_to_end.runs import BASE, assert_same, copy_images, logged, train

TIMESTEPS = (100, 300, 500, 700, 900)
HELD_OUT = {"validation_split": 0.4, "validate_every_n_steps": 2}
SIZES = {"resolution": (64, 64), "enable_bucket": True, "bucket_reso_steps": 8, "min_bucket_reso": 32,
         "max_bucket_reso": 128, "train_batch_size": 2}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def measured(images, tmp_path_factory):
    """A run of 6 steps, 3 to the epoch, that measures at 0, 2, 4 and 6."""
    out = tmp_path_factory.mktemp("measured")
    options = {"max_train_steps": 6, "save_state": True, "save_every_n_steps": 4, "flip_aug": True}
    return out, train(images, out, **HELD_OUT, **options)


def curves(out) -> dict[str, list[tuple[int, float]]]:
    return {name: logged(out, name) for name in ("loss/validation", *(f"loss/validation_t{t}" for t in TIMESTEPS))}


def held_out(images, split=0.4, **sizes):
    options = {"train_data_dir": str(images), "caption_extension": ".txt", "validation_split": split}
    return load_training_data(DatasetOptions(**options, **SIZES | sizes)).validation


def errors_of_the_model(data) -> dict[int, list[float]]:
    """Of each image at each timestep, calculated from Diffusers' parts."""
    pipe = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)
    (dataset,) = data.datasets
    errors = {timestep: [] for timestep in TIMESTEPS}
    for batch in data.batches_of_epoch(0, 0):
        records = [int(dataset.items[item]) for item in batch.item_indices]
        latents = []
        for key in (dataset.latent_key(record, False) for record in records):
            posterior = pipe.vae.encode(torch.from_numpy(load_image(key).pixels)[None]).latent_dist
            drawn = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(latent_seed(key)))
            latents.append((posterior.mean + posterior.std * drawn) * pipe.vae.config.scaling_factor)
        latents = torch.cat(latents)
        captions = [dataset.records[record].caption for record in records]
        states = pipe.text_encoder(pipe.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids)[0]
        for timestep in TIMESTEPS:
            seed = derive_seed("validation noise", batch.index, timestep)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
            times = torch.full((len(latents),), timestep)
            with torch.no_grad():
                found = pipe.unet(pipe.scheduler.add_noise(latents, noise, times), times, states).sample
            errors[timestep] += ((found - noise) ** 2).mean(dim=(1, 2, 3)).tolist()
    return errors


def test_the_grid_is_the_middles_of_equal_parts():
    assert timestep_grid(range(1000)) == list(TIMESTEPS)
    assert timestep_grid(range(200, 300)) == [210, 230, 250, 270, 290]
    assert timestep_grid(range(7, 8)) == [7]


def test_before_training_it_is_the_loss_of_the_model_itself(images, measured):
    """The mean over the images at each timestep, and over the timesteps."""
    errors = errors_of_the_model(held_out(images))
    assert all(len(each) == 2 for each in errors.values())  # two of the five images
    means = {timestep: sum(each) / len(each) for timestep, each in errors.items()}
    found = {name: rows[0] for name, rows in curves(measured[0]).items()}
    assert found.pop("loss/validation") == (0, pytest.approx(sum(means.values()) / 5, rel=1e-5))
    assert found == {f"loss/validation_t{t}": (0, pytest.approx(mean, rel=1e-5)) for t, mean in means.items()}


def test_each_image_counts_as_much_as_another_whatever_its_batch(images, tmp_path):
    """Three images in a batch of two and one of one."""
    sizes = {"enable_bucket": False}
    data = held_out(images, split=0.6, **sizes)
    assert sorted(len(batch.item_indices) for batch in data.batches_of_epoch(0, 0)) == [1, 2]
    errors = errors_of_the_model(data)
    train(images, tmp_path, **HELD_OUT | {"validation_split": 0.6}, max_train_steps=1, **sizes)
    means = [sum(each) / 3 for each in errors.values()]
    assert logged(tmp_path, "loss/validation")[0] == (0, pytest.approx(sum(means) / 5, rel=1e-5))


def test_it_is_measured_as_often_as_asked_and_changes_as_the_weights_do(measured):
    rows = curves(measured[0])["loss/validation"]
    assert [step for step, _ in rows] == [0, 2, 4, 6]
    assert len({value for _, value in rows}) == 4


def test_nothing_of_it_is_learned(images, measured, tmp_path):
    """A run on a folder that never had the held-out images, and measures nothing, gives the same weights."""
    left = shutil.copytree(images, tmp_path / "left")
    for record in held_out(images).datasets[0].records:
        (left / "2_shs fox" / record.key).unlink()
    assert len(list(left.rglob("*.png"))) == 3
    assert_same(measured[1], train(left, tmp_path / "out", max_train_steps=6, flip_aug=True))
    assert logged(tmp_path / "out") == logged(measured[0])


@pytest.mark.parametrize(
    "loading",
    [{"cache_latents": True}, {"cache_latents_to_disk": True, "max_data_loader_n_workers": 1}, {"seed": 7}],
    ids=["memory", "files", "again"],
)
def test_caches_and_workers_measure_the_same(images, measured, tmp_path, loading):
    train(images, tmp_path, **HELD_OUT, max_train_steps=6, flip_aug=True, **loading)
    assert curves(tmp_path) == curves(measured[0])


def test_another_run_starts_from_the_same_value(images, measured, tmp_path):
    """Neither seed nor repeats nor batch order of the run move it: LoRA's start changes nothing of the model."""
    train(images, tmp_path, **HELD_OUT, max_train_steps=1, seed=99, gradient_accumulation_steps=2)
    first = {name: rows[0] for name, rows in curves(measured[0]).items()}
    assert {name: rows[0] for name, rows in curves(tmp_path).items()} == first


def test_the_seed_of_a_run_chooses_no_other_captions(images, tmp_path):
    """Of captions that hold alternatives."""
    wild = shutil.copytree(images, tmp_path / "wild")
    for path in wild.rglob("*.txt"):
        path.write_text("a {red|green|blue|yellow|pink|grey} {fox|dog|cat|owl|cow}", encoding="utf-8")
    for seed in (1, 2):
        train(wild, tmp_path / str(seed), **HELD_OUT, max_train_steps=1, seed=seed, enable_wildcard=True)
    first, second = ({name: rows[0] for name, rows in curves(tmp_path / str(seed)).items()} for seed in (1, 2))
    assert first == second


def test_a_resumed_run_goes_on_with_the_curve(images, measured, tmp_path):
    state = measured[0] / "run-step00000004-state"
    train(images, tmp_path, **HELD_OUT, max_train_steps=6, flip_aug=True, resume=state)
    assert curves(tmp_path) == {name: rows[-1:] for name, rows in curves(measured[0]).items()}


def test_every_epoch_unless_told_otherwise_and_on_few_batches(images, tmp_path):
    train(images, tmp_path / "all", validation_split=0.4, max_train_steps=7, train_batch_size=1)
    assert [step for step, _ in logged(tmp_path / "all", "loss/validation")] == [0, 6, 7]
    options = {"validate_every_n_epochs": 2, "max_validation_steps": 1, "max_train_epochs": 3, "train_batch_size": 1}
    train(images, tmp_path / "few", validation_split=0.4, learning_rate=0, **options)
    rows = logged(tmp_path / "few", "loss/validation")
    assert [step for step, _ in rows] == [0, 12, 18]
    assert rows[0][1] == rows[1][1] == rows[2][1] != logged(tmp_path / "all", "loss/validation")[0][1]


def test_nothing_is_dropped_out_while_it_is_measured(images, measured, tmp_path):
    """Each value would be another one; here nothing changes between them."""
    train(
        images, tmp_path, **HELD_OUT, learning_rate=0, network_weights=measured[0] / "run.safetensors",
        network_dropout=0.5, mixed_precision="bf16", gradient_checkpointing=True, max_train_steps=4,
    )  # fmt: skip
    values = {value for _, value in logged(tmp_path, "loss/validation")}
    assert len(values) == 1 and math.isfinite(values.pop())


def test_asking_for_it_without_images_is_warned_of(images, tmp_path, caplog):
    train(images, tmp_path, validate_every_n_steps=2, max_train_steps=1)
    assert "no validation loss is measured: no images are held out" in caplog.text
