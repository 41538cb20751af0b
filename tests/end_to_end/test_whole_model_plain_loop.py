"""If these fail, training the whole model is not the mathematics that the options promise.

The same few steps are done by a loop written here from Diffusers' and PyTorch's parts. It shares with the program the
images' pixels, the order of the plan and the keys of the random numbers, which other tests look at; the loss of a
batch, regularisation images included, is that of the loop for LoRA beside this one.
"""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from tests.end_to_end.runs import BASE, IMAGES, REGULARISATION, logged
from tests.end_to_end.test_against_a_plain_loop import DATASET, GAMMA, OFFSET, PERTURBATION, PRIOR, SEED, loss_of
from tests.end_to_end.whole_models import PARTS, changed_parts, read_model, train_whole

RATE, TEXT_RATE, CLIP, STEPS = 0.5, 2.0, 0.02, 3  # rates that move weights well beyond rounding
OPTIONS = {
    "resolution": None,
    "enable_bucket": None,
    "optimizer_type": "SGD",
    "learning_rate": RATE,
    "max_train_steps": STEPS,
    "noise_offset": OFFSET,
    "ip_noise_gamma": PERTURBATION,
    "min_snr_gamma": GAMMA,
    "prior_loss_weight": PRIOR,
    "max_grad_norm": CLIP,
    "seed": SEED,
}


def plain_training(data, *, accumulation=1, text_steps=STEPS):
    """The model after some steps of SGD, and the losses. `text_steps`: how many of them the text encoder takes."""
    pipe = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)
    pipe.vae.requires_grad_(False)
    plan, losses = data.batches_of_epoch(SEED, 0), []
    for step in range(STEPS):
        learning = [(pipe.unet, RATE), *([(pipe.text_encoder, TEXT_RATE)] if step < text_steps else [])]
        pipe.text_encoder.requires_grad_(step < text_steps)
        batches = plan[step * accumulation : (step + 1) * accumulation]
        loss = sum(loss_of(pipe, data, batch) for batch in batches) / len(batches)
        losses.append(loss.item())
        loss.backward()
        params = [param for module, _ in learning for param in module.parameters()]
        norm = torch.stack([param.grad.norm() for param in params]).norm()
        factor = min(1.0, CLIP / norm.item())
        assert factor < 1  # clipping has something to do
        with torch.no_grad():
            for module, rate in learning:
                for param in module.parameters():
                    param -= rate * factor * param.grad
                    param.grad = None
    return {part: dict(getattr(pipe, part).state_dict()) for part in PARTS}, losses


def assert_learned_alike(found, expected, learned):
    base = read_model(BASE)
    assert changed_parts(found, base) == learned == changed_parts(expected, base)
    for part in learned:
        changes = torch.cat([(tensor - base[part][name]).flatten() for name, tensor in expected[part].items()])
        errors = torch.cat([(tensor - found[part][name]).flatten() for name, tensor in expected[part].items()])
        assert errors.abs().max() < 1e-6, (part, errors.abs().max())
        assert changes.abs().max() > 5e-4  # what is compared is not nothing


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "data.toml").write_text(DATASET)
    return tmp_path / "data.toml"


@pytest.mark.parametrize(
    ("accumulation", "checkpointing", "text_steps"),
    [(1, False, STEPS), (1, True, STEPS), (2, True, STEPS), (2, False, 2), (1, True, 0), (2, False, 0)],
)
def test_dreambooth_steps_are_those_of_a_plain_loop(dataset, tmp_path, accumulation, checkpointing, text_steps):
    is_stopped = text_steps < STEPS
    train_whole(
        "train_db", None, tmp_path / "out", **OPTIONS, dataset_config=dataset, logging_dir=tmp_path / "out" / "logs",
        learning_rate_te=TEXT_RATE, gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing,
        stop_text_encoder_training=text_steps if is_stopped else None,
    )  # fmt: skip
    data = load_training_data(DatasetOptions(dataset_config=str(dataset)))
    expected, losses = plain_training(data, accumulation=accumulation, text_steps=text_steps)
    learned = {"unet", "text_encoder"} if text_steps else {"unet"}
    assert_learned_alike(read_model(tmp_path / "out" / "run"), expected, learned)
    assert [value for _, value in logged(tmp_path / "out")] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(("accumulation", "trains_text"), [(1, False), (2, True)])
def test_fine_tuning_steps_are_those_of_a_plain_loop(tmp_path, accumulation, trains_text):
    captions = {path.stem: path.with_suffix(".txt").read_text().strip() for path in sorted(IMAGES.glob("*.png"))}
    (tmp_path / "meta.json").write_text(json.dumps({stem: {"caption": text} for stem, text in captions.items()}))
    config = tmp_path / "data.toml"
    config.write_text(
        "[[datasets]]\nresolution = 64\nbatch_size = 2\n[[datasets.subsets]]\n"
        f"image_dir = '{IMAGES}'\nmetadata_file = '{tmp_path / 'meta.json'}'\n"
    )
    text = {"train_text_encoder": True, "learning_rate_te": TEXT_RATE} if trains_text else {}
    train_whole("fine_tune", None, tmp_path / "out", **OPTIONS, dataset_config=config,
                gradient_accumulation_steps=accumulation, **text)  # fmt: skip
    data = load_training_data(DatasetOptions(dataset_config=str(config)))
    expected, _ = plain_training(data, accumulation=accumulation, text_steps=STEPS if trains_text else 0)
    learned = {"unet", "text_encoder"} if trains_text else {"unet"}
    assert_learned_alike(read_model(tmp_path / "out" / "run"), expected, learned)


def test_regularisation_images_count_by_their_weight(tmp_path):
    """The loss of a batch of an image and a class image, from the losses of each without the other's."""
    for folder, image in (("2_shs fox", IMAGES / "fox_01.png"), ("1_animal", REGULARISATION / "animal_01.png")):
        target = tmp_path / ("train" if "fox" in folder else "reg") / folder
        target.mkdir(parents=True)
        (target / image.name).write_bytes(image.read_bytes())
    losses = {}
    for weight in (0, 0.25, 1):
        out = tmp_path / str(weight)
        # both images twice an epoch, all four in one batch
        train_whole("train_db", tmp_path / "train", out, reg_data_dir=tmp_path / "reg", enable_bucket=None,
                    train_batch_size=4, max_train_steps=1, prior_loss_weight=weight,
                    logging_dir=out / "logs")  # fmt: skip
        ((_, losses[weight]),) = logged(out)
    of_class = losses[1] - losses[0]
    assert losses[0] > 1e-3 and of_class > 1e-3
    assert losses[0.25] == pytest.approx(losses[0] + 0.25 * of_class, rel=1e-6)
