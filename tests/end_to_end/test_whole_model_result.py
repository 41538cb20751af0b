"""If these fail, a user of train_db.py or fine_tune.py ends with a model that did not learn what it was told to, that
learned what it was not, or that does not open elsewhere."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from library.models.layouts.formats import FORMATS
from tests.end_to_end.runs import BASE, IMAGES, REGULARISATION, logged
from tests.end_to_end.whole_models import changed_parts, read_model, train_whole
from tests.tiny_models import make_tiny, to_stability_layout


@pytest.fixture(scope="module")
def base():
    return read_model(BASE)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("script", "learned"), [("train_db", {"unet", "text_encoder"}), ("fine_tune", {"unet"})])
def test_each_format_opens_in_diffusers_with_what_learned_and_nothing_else_changed(
    script, learned, format, data_dir, tmp_path, base
):
    # in bf16 the frozen parts are rounded for the computation; the saved ones must not be
    train_whole(script, data_dir, tmp_path / "out", save_model_as=format, save_every_n_steps=3, mixed_precision="bf16",
                save_every_n_epochs=1, max_train_steps=7)  # fmt: skip
    ending = FORMATS[format].ending
    names = [f"run-step00000003{ending}", f"run-000001{ending}", f"run-step00000006{ending}", f"run{ending}"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    before = base
    for name in names:
        weights = read_model(tmp_path / "out" / name)
        assert changed_parts(weights, base) == learned
        assert changed_parts(weights, before) == learned  # each save holds later weights
        before = weights


@pytest.mark.parametrize("script", ["train_db", "fine_tune"])
def test_a_lower_precision_of_the_computation_rounds_no_weights(script, data_dir, tmp_path, base):
    """Neither of frozen parts nor of those that learn, here at a rate of 0."""
    train_whole(script, data_dir, tmp_path / "out", mixed_precision="bf16", learning_rate=0, save_state=True)
    assert changed_parts(read_model(tmp_path / "out" / "run"), base) == set()


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        ({"train_text_encoder": True}, {"unet", "text_encoder"}),
        ({"train_text_encoder": True, "learning_rate_te": 0, "optimizer_type": "SGD"}, {"unet"}),
        ({"cache_text_encoder_outputs": True, "cache_latents": True, "diffusers_xformers": True}, {"unet"}),
    ],
)
def test_fine_tuning_trains_the_text_encoder_when_asked(options, learned, data_dir, tmp_path, base):
    train_whole("fine_tune", data_dir, tmp_path / "out", **options)
    assert changed_parts(read_model(tmp_path / "out" / "run"), base) == learned


def test_the_vae_given_is_the_vae_saved(data_dir, tmp_path, base):
    other = make_tiny(False).vae
    other.save_pretrained(tmp_path / "vae")
    train_whole("train_db", data_dir, tmp_path / "out", vae=tmp_path / "vae", max_train_steps=1)
    weights = read_model(tmp_path / "out" / "run")
    for name, tensor in other.state_dict().items():
        assert torch.equal(weights["vae"][name], tensor)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("precision", ["fp16", "float"])
def test_a_single_file_stays_one_and_goes_on_as_a_model(ending, precision, data_dir, tmp_path):
    """SD 2.x, which keeps several tensors of the text encoder in one: they learn apart, and states hold them."""
    source = tmp_path / f"model{ending}"
    torch.save({"state_dict": to_stability_layout(make_tiny(True))}, tmp_path / "model.ckpt")
    if ending == ".safetensors":
        save_file(to_stability_layout(make_tiny(True)), source)
    options = {"pretrained_model_name_or_path": source, "save_precision": precision, "max_train_steps": 2}
    train_whole("train_db", data_dir, tmp_path / "out", save_state=True, **options)
    saved = tmp_path / "out" / f"run{ending}"
    train_whole("train_db", data_dir, tmp_path / "out2", **{**options, "pretrained_model_name_or_path": saved})
    assert (tmp_path / "out2" / f"run{ending}").is_file()
    if ending == ".safetensors":
        with safe_open(saved, "pt") as file:
            dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert dtypes == {"F16" if precision == "fp16" else "F32"}


def test_the_metadata_says_how_a_model_was_trained(data_dir, tmp_path):
    train_whole("train_db", data_dir, tmp_path / "out", save_model_as="safetensors", stop_text_encoder_training=2,
                learning_rate_te=1e-4, metadata_author="me")  # fmt: skip
    with safe_open(tmp_path / "out" / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"  # and no "/lora"
    assert metadata["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert metadata["modelspec.title"] == "run" and metadata["modelspec.author"] == "me"
    assert metadata["modelspec.resolution"] == "64x64" and metadata["modelspec.prediction_type"] == "epsilon"
    assert (metadata["ss_unet_lr"], metadata["ss_text_encoder_lr"]) == ("0.001", "0.0001")
    assert metadata["ss_stop_text_encoder_training"] == "2"
    assert json.loads(metadata["ss_dataset_dirs"])["2_shs fox"] == {"n_repeats": 2, "img_count": 5}
    assert metadata["ss_steps"] == "4" and not any("network" in key for key in metadata)


def test_samples_show_the_model_as_it_learns_and_change_nothing(data_dir, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a shs fox --w 64 --h 64 --s 4 --d 1\n")
    options = {"no_token_padding": True, "learning_rate": 1e-2}
    train_whole("train_db", data_dir, tmp_path / "plain", **options)
    train_whole("train_db", data_dir, tmp_path / "out", **options, sample_prompts=prompts, sample_at_first=True,
                sample_every_n_steps=2, stop_text_encoder_training=4)  # fmt: skip
    images = sorted((tmp_path / "out" / "sample").glob("*_0?_*.png"))
    assert [path.name.split("_")[1] for path in images] == ["000000", "000002", "000004"]
    drawn = [Image.open(path).tobytes() for path in images]
    assert len(set(drawn)) == 3
    plain, sampled = (read_model(tmp_path / name / "run") for name in ("plain", "out"))
    assert changed_parts(plain, sampled) == set()


def test_rates_are_logged_under_the_names_of_the_parts(data_dir, tmp_path):
    train_whole("train_db", data_dir, tmp_path / "out", logging_dir=tmp_path / "out" / "logs", learning_rate_te=5e-4)
    assert [value for _, value in logged(tmp_path / "out", "lr/unet")] == pytest.approx([1e-3] * 4)
    assert [value for _, value in logged(tmp_path / "out", "lr/textencoder")] == pytest.approx([5e-4] * 4)


def test_padding_changes_what_short_captions_say(data_dir, tmp_path):
    train_whole("train_db", data_dir, tmp_path / "padded", max_train_steps=2)
    train_whole("train_db", data_dir, tmp_path / "short", max_train_steps=2, no_token_padding=True)
    padded, short = (read_model(tmp_path / name / "run") for name in ("padded", "short"))
    assert changed_parts(padded, short) == {"unet", "text_encoder"}


@pytest.mark.parametrize("source", ["folder", "metadata"])
def test_a_dataset_file_describes_the_data_of_either_script(source, data_dir, tmp_path, base):
    (folder,) = data_dir.iterdir()
    subset = (
        f"image_dir = '{IMAGES}'\ncaption_extension = '.txt'\n[[datasets.subsets]]\n"
        f"image_dir = '{REGULARISATION}'\nis_reg = true"
    )
    if source == "metadata":
        (tmp_path / "meta.json").write_text(json.dumps({path.stem: {"tags": "fox"} for path in folder.glob("*.png")}))
        subset = f"image_dir = '{folder}'\nmetadata_file = '{tmp_path / 'meta.json'}'"
    config = tmp_path / "data.toml"
    config.write_text(f"[[datasets]]\nresolution = 64\nbatch_size = 2\n[[datasets.subsets]]\n{subset}\n")
    script = "train_db" if source == "folder" else "fine_tune"
    train_whole(script, None, tmp_path / "out", dataset_config=config, resolution=None, max_train_steps=2)
    assert "unet" in changed_parts(read_model(tmp_path / "out" / "run"), base)
