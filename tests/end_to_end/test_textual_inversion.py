"""If these fail, a user who trains a new word gets one that has learned nothing, or another model beside it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.stable_diffusion.model import TABLE
from library.models.text.embedding_files import read_embedding
from library.models.text.token_embedding import TokenEmbedding
from library.training import model_setup
from library.training.checkpoints.states import read_state
from tests.end_to_end.launches import launch
from tests.end_to_end.runs import BASE, logged
from tests.end_to_end.word_runs import WORD, copy_with_word, train_word, word_arguments
from tests.tiny_models import make_tiny, write_folder

LAYERS = ("IN01", "IN03", "MID", "OUT02", "OUT03", "OUT04", "OUT05")  # of the quickstart's model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_with_word(tmp_path_factory.mktemp("images") / "data")


def load_base():
    return load_family(ModelOptions(pretrained_model_name_or_path=str(BASE)))


@torch.no_grad()
def mean_loss(images, vectors):
    """Mean squared error of the predicted noise on the images at five timesteps; the noise is always the same."""
    family = load_base()
    family.add_token(WORD, {TABLE: TokenEmbedding(WORD, vectors)})
    schedule, losses = family.process.schedule, []
    options = DatasetOptions(train_data_dir=str(images), resolution=(64, 64), caption_extension=".txt")
    (dataset,) = load_training_data(options).datasets
    for index, record in enumerate(dataset.records):
        pixels = torch.from_numpy(load_image(dataset.latent_key(index, False)).pixels)[None]
        latents = family.scale_latents(family.encode_images(pixels, [index])).expand(5, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
        timesteps = torch.tensor([100, 300, 500, 700, 900])
        conditioning = family.encode_prompts([record.caption] * 5)
        predicted = family.predict(schedule.add_noise(latents, noise, timesteps), timesteps, conditioning)
        losses.append(functional.mse_loss(predicted, noise))
    return float(torch.stack(losses).mean())


def random_vectors(seed, layers=1):
    """A word that nobody trained: a row such as the vocabulary has them."""
    table = load_base().token_vectors()[TABLE]
    noise = torch.randn((layers, 1, 64), generator=torch.Generator().manual_seed(seed))
    return table.mean(dim=0) + table.std(dim=0) * noise


@pytest.mark.parametrize("xti", [False, True], ids=["plain", "xti"])
def test_a_word_learns_what_the_images_show(tmp_path, xti):
    """The loss on them falls by an eighth, below that with any random word; with these it is where it began."""
    images = copy_with_word(tmp_path / "data", count=12)
    options = {"init_word": "dog", "xti": xti, "cache_latents": True, "train_batch_size": 4}
    start = train_word(images, tmp_path / "start", learning_rate=0, max_train_steps=1, **options)
    trained = train_word(images, tmp_path / "trained", max_train_steps=60, learning_rate=2e-2, **options)
    before, after = mean_loss(images, start.vectors), mean_loss(images, trained.vectors)
    untrained = [mean_loss(images, random_vectors(seed)) for seed in range(4)]
    assert after < min(before * 0.88, *untrained), (before, after, untrained)
    assert sum(untrained) / 4 > before * 0.95, (before, after, untrained)


@pytest.mark.parametrize("xti", [False, True], ids=["plain", "xti"])
def test_everything_else_is_the_same_afterwards(images, tmp_path, monkeypatch, xti):
    """All parts of the model, every row of the text encoder's table among them."""
    seen = []
    monkeypatch.setattr(model_setup, "load_family", lambda *args: seen.append(load_family(*args)) or seen[-1])
    trained = train_word(images, tmp_path, xti=xti, init_word="dog", num_vectors_per_token=2)
    (family,), fresh = seen, load_base()
    for name in ("unet", "vae"):
        assert_equal(getattr(family, name).state_dict(), getattr(fresh, name).state_dict())
    assert_equal(family.text_encoders[0].state_dict(), fresh.text_encoders[0].state_dict())
    assert trained.vectors.shape == (len(LAYERS) if xti else 1, 2, 64)
    moved = (trained.vectors - fresh.token_vectors("dog")[TABLE]).abs().amax(dim=-1)
    assert (moved > 1e-3).all()  # each vector of each layer has learned
    assert trained.layers == (LAYERS if xti else ())


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


HARD = {
    "num_vectors_per_token": 2,
    "init_word": "dog",
    "use_object_template": True,
    "flip_aug": True,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 6,
    "ema": True,
    "ema_decay": 0.5,
    "validation_split": 0.4,
    "validate_every_n_steps": 2,
    "save_every_n_steps": 1,
    "save_state": True,
    "train_batch_size": 1,
}


@pytest.mark.parametrize(
    "options",
    [{}, {"xti": True, "gradient_checkpointing": True, "mixed_precision": "bf16", "save_model_as": "pt"}],
    ids=["plain", "xti"],
)
def test_a_resumed_run_ends_with_the_same_bits(images, tmp_path, options):
    """In the middle of an epoch, with accumulation, templates, an average and validation."""
    whole = train_word(images, tmp_path / "whole", **HARD, **options)
    state = tmp_path / "whole" / "run-step00000003-state"
    resumed = train_word(images, tmp_path / "resumed", **HARD, **options, resume=state)
    assert torch.equal(whole.vectors, resumed.vectors)
    (own, training), (own_again, training_again) = (
        read_state(str(tmp_path / name / "run-state")) for name in ("whole", "resumed")
    )
    assert_equal(own, own_again)
    assert torch.equal(training["average"]["averages"][0], training_again["average"]["averages"][0])
    assert not torch.equal(own[WORD], whole.vectors)  # what is saved is the average
    curve = logged(tmp_path / "whole", "loss/validation")
    assert [step for step, _ in curve] == [0, 2, 4, 6]
    assert logged(tmp_path / "resumed", "loss/validation") == curve[2:]


def test_a_run_goes_on_from_each_form_of_file(images, tmp_path):
    options = {"num_vectors_per_token": 2, "init_word": "dog"}
    for ending in ("safetensors", "pt", "ckpt"):
        first = train_word(images, tmp_path / ending, **options, save_model_as=ending)
        weights = tmp_path / ending / f"run.{ending}"
        again = train_word(images, tmp_path / f"from {ending}", weights=weights, learning_rate=0, max_train_steps=1)
        assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors[0, 0], first.vectors[0, 1])


def test_layers_go_on_from_layers_and_begin_as_a_plain_word(images, tmp_path):
    options = {"xti": True, "learning_rate": 0, "max_train_steps": 1}
    layered = train_word(images, tmp_path / "layered", xti=True)
    again = train_word(images, tmp_path / "a", weights=tmp_path / "layered" / "run.safetensors", **options)
    assert torch.equal(layered.vectors, again.vectors) and again.layers == LAYERS
    plain = train_word(images, tmp_path / "plain")
    again = train_word(images, tmp_path / "b", weights=tmp_path / "plain" / "run.safetensors", **options)
    assert torch.equal(again.vectors, plain.vectors.expand(7, -1, -1))


def test_samples_hold_the_word_of_each_layer_and_change_nothing(images, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a {WORD} --n an ({WORD}:0.5) --w 64 --h 64 --d 1 --s 3\n")
    options = {"xti": True, "max_train_steps": 3}
    plain = train_word(images, tmp_path / "plain", **options)
    sampling = {"sample_prompts": prompts, "sample_every_n_steps": 1}
    sampled = train_word(images, tmp_path / "sampled", **options, **sampling)
    assert torch.equal(plain.vectors, sampled.vectors)
    drawn = sorted((tmp_path / "sampled" / "sample").glob("*_0?_*.png"))
    assert len({path.read_bytes() for path in drawn}) == len(drawn) == 3


def test_what_a_file_says_of_its_training(images, tmp_path, caplog):
    caplog.set_level("INFO")
    train_word(images, tmp_path, num_vectors_per_token=3, init_word="red dog", use_style_template=True)
    with safe_open(tmp_path / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_token_string"] == WORD and metadata["ss_num_vectors_per_token"] == "3"
    assert metadata["ss_init_word"] == "red dog" and metadata["ss_use_style_template"] == "True"
    assert metadata["ss_steps"] == "4" and WORD in metadata["ss_tag_frequency"]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert "--init_word 'red dog' has 2 tokens for 3 vectors: they are repeated" in caplog.text
    assert f"token='{WORD}'" in caplog.text.split("Next:")[1]


def test_without_an_initial_word_the_vectors_depend_on_the_seed_alone(images, tmp_path):
    options = {"learning_rate": 0, "max_train_steps": 1}
    first, again, other = (
        train_word(images, tmp_path / str(number), seed=seed, **options).vectors
        for number, seed in enumerate((7, 7, 8))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    norms = load_base().token_vectors()[TABLE].norm(dim=1)
    assert norms.min() < first.norm() < norms.max()


def test_a_model_of_the_second_generation_learns_too(images, tmp_path):
    model = write_folder(make_tiny(True), tmp_path / "model", prediction_type="v_prediction")
    for name, xti in (("plain", False), ("xti", True)):
        options = {"pretrained_model_name_or_path": model, "num_vectors_per_token": 2, "xti": xti}
        word = train_word(images, tmp_path / name, init_word="dog", **options)
        assert word.vectors.shape == (4 if xti else 1, 2, 64)
        assert not torch.allclose(word.vectors[0, 0], word.vectors[0, 1])


def test_data_can_be_described_in_all_three_ways(images, tmp_path):
    folder = images / "2_shs fox"
    (tmp_path / "data.toml").write_text(
        "[[datasets]]\nresolution = 64\nbatch_size = 2\n"
        f"[[datasets.subsets]]\nimage_dir = '{folder}'\nnum_repeats = 2\n"
    )
    described = {path.stem: {"caption": path.with_suffix(".txt").read_text()} for path in folder.glob("*.png")}
    (tmp_path / "meta.json").write_text(json.dumps(described))
    sizes = {"enable_bucket": None, "max_train_steps": 2}
    ways = {
        "folders": {"train_data_dir": images},
        "toml": {"train_data_dir": None, "dataset_config": tmp_path / "data.toml", "resolution": None},
        "metadata": {"train_data_dir": folder, "in_json": tmp_path / "meta.json", "dataset_repeats": 2},
    }
    words = [train_word(None, tmp_path / name, **sizes, **way).vectors for name, way in ways.items()]
    assert torch.equal(words[0], words[1])  # the images and the plan are the same
    assert words[2].shape == words[0].shape and not torch.equal(words[2], random_vectors(7)[None])


def test_a_caption_that_is_always_dropped_teaches_nothing_and_ends_no_run(images, tmp_path):
    options = {"init_word": "dog", "max_train_steps": 2, "optimizer_args": "weight_decay=0"}
    word = train_word(images, tmp_path, caption_dropout_rate=1.0, **options)
    assert torch.equal(word.vectors[0], load_base().token_vectors("dog")[TABLE])


@pytest.mark.slow
@pytest.mark.parametrize("xti", [False, True], ids=["plain", "xti"])
def test_two_processes_learn_what_one_does_with_twice_the_accumulation(images, tmp_path, xti):
    options = {"xti": xti, "init_word": "dog", "train_batch_size": 1, "max_train_steps": 5}
    one = train_word(images, tmp_path / "one", gradient_accumulation_steps=2, **options)
    launch(
        word_arguments(images, tmp_path / "two", **options),
        "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", script="train_textual_inversion.py",
    )  # fmt: skip
    two = read_embedding(tmp_path / "two" / "run.safetensors")
    torch.testing.assert_close(two.vectors, one.vectors, rtol=1e-4, atol=1e-6)
