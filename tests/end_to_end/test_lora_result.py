"""If these fail, a user's LoRA does not learn, or does something else in other programs."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

import networks.lora
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.evaluation.prompts import SamplePrompt
from library.training.evaluation.samples import draw_sample
from tests.end_to_end.runs import BASE, IMAGES, REGULARISATION, assert_same, logged, train

DATASET = f"""
[general]
caption_extension = ".txt"
enable_bucket = true
bucket_reso_steps = 8
min_bucket_reso = 32
max_bucket_reso = 128
[[datasets]]
resolution = 64
batch_size = 4
[[datasets.subsets]]
image_dir = '{IMAGES}'
[[datasets.subsets]]
image_dir = '{REGULARISATION}'
is_reg = true
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The quickstart's training, shorter: 200 steps, U-Net and text encoder."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data.toml").write_text(DATASET)
    train(
        None,
        folder / "out",
        dataset_config=folder / "data.toml",
        cache_latents=True,
        network_dim=8,
        network_alpha=8,
        unet_lr=2e-3,
        text_encoder_lr=2e-4,
        min_snr_gamma=5,
        max_train_steps=200,
        resolution=None,
    )
    return folder / "out"


def base():
    return load_family(ModelOptions(pretrained_model_name_or_path=str(BASE)))


def with_lora(file):
    family = base()
    network, _ = networks.lora.create_network_from_weights(
        1.0, str(file), family.vae, family.text_encoders[0], family.unet, for_inference=True
    )
    network.apply_to(family.text_encoders[0], family.unet)
    return family


def pipeline():
    return StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)


def test_diffusers_reads_the_file_and_computes_the_same(trained):
    """Both parts of the network: Diffusers' text encoder and U-Net, patched by Diffusers, against our forward."""
    ours, theirs = with_lora(trained / "run.safetensors"), pipeline()
    theirs.load_lora_weights(str(trained / "run.safetensors"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([700, 20])
    ids = theirs.tokenizer(["a shs fox", ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        conditioning = ours.encode_prompts(["a shs fox", ""])
        hidden = theirs.text_encoder(ids).last_hidden_state
        assert (hidden - conditioning.hidden_states).abs().max() < 1e-5
        expected = theirs.unet(latents, timesteps, encoder_hidden_states=hidden).sample
        found = ours.predict(latents, timesteps, conditioning)
        plain = base().predict(latents, timesteps, base().encode_prompts(["a shs fox", ""]))
    assert (found - expected).abs().max() < 1e-5
    assert (found - plain).abs().max() > 0.05  # and it is not the base's output


@torch.no_grad()
def concept_loss(family):
    """Error on the images at fixed noise and a fixed grid of timesteps, by Diffusers' scheduler."""
    scheduler = pipeline().scheduler
    total = 0.0
    for index, path in enumerate(sorted(IMAGES.glob("*.png"))):
        image = np.asarray(Image.open(path).convert("RGB").resize((64, 64)), np.float32) / 127.5 - 1
        pixels = torch.from_numpy(image.transpose(2, 0, 1))[None]
        latents = family.scale_latents(family.encode_images(pixels, [index])).repeat(8, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
        timesteps = torch.arange(60, 1000, 120)
        caption = path.with_suffix(".txt").read_text().strip()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = family.predict(noisy, timesteps, family.encode_prompts([caption] * 8))
        total += (prediction - noise).square().mean().item()
    return total / 12


def test_the_loss_on_the_concept_falls(trained):
    before, after = concept_loss(base()), concept_loss(with_lora(trained / "run.safetensors"))
    assert after < 0.75 * before, (before, after)


def colours(images):
    """Mean histogram of the pixels that are not background: 4 x 4 x 4 bins."""
    histograms = []
    for image in images:
        pixels = np.asarray(image.convert("RGB").resize((64, 64)), float)
        distance = np.abs(pixels - np.median(pixels[0], axis=0)).sum(-1)
        subject = pixels[distance > 90]
        bins = (subject // 64).astype(int) @ [16, 4, 1]
        histograms.append(np.bincount(bins, minlength=64) / max(1, len(bins)))
    return np.mean(histograms, axis=0)


def test_samples_of_the_concept_move_towards_its_images(trained):
    target = colours([Image.open(path) for path in sorted(IMAGES.glob("*.png"))])
    backgrounds = ["white", "blue", "green", "yellow"]

    def distance(family):
        prompts = [SamplePrompt(f"a shs fox on a {name} background", "", 64, 64, 15, 4.0) for name in backgrounds]
        drawn = [draw_sample(family, prompt, sampler="ddim", seed=i) for i, prompt in enumerate(prompts)]
        return 1 - np.minimum(colours(drawn), target).sum()

    before, after = distance(base()), distance(with_lora(trained / "run.safetensors"))
    assert after < 0.8 * before, (before, after)


# class of Diffusers, and what its configuration has beside that of the model: the spacing of the sampler's origin, and
# what the class asks for
DIFFUSERS_SAMPLERS = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as in the configuration of Stable Diffusion
    "lms": ("LMSDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpm_2": ("KDPM2DiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpmsolver": (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "linspace", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}


def test_samples_are_those_of_diffusers_from_the_same_noise():
    """LMS: Diffusers integrates its coefficients with SciPy, to a relative error of 1e-4."""
    import diffusers

    from library.training.evaluation.samplers import SAMPLERS

    prompt = SamplePrompt("a red heart on a yellow background", "blurry", 64, 72, 8, 4.0)
    family, pipe = base(), pipeline()
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    for sampler, (name, settings) in DIFFUSERS_SAMPLERS.items():
        pipe.scheduler = getattr(diffusers, name).from_config(config, **settings)
        result = pipe(
            prompt.prompt,
            negative_prompt=prompt.negative_prompt,
            width=64,
            height=72,
            num_inference_steps=8,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(11),
        )
        ours = np.asarray(draw_sample(family, prompt, sampler=sampler, seed=11), float)
        assert ours.shape == (72, 64, 3)
        # rounding of one step in 255
        assert np.abs(ours - np.asarray(result.images[0], float)).max() <= 1, sampler
    assert set(SAMPLERS) == set(DIFFUSERS_SAMPLERS)


def test_learning_rate_0_leaves_the_base_untouched(data_dir, tmp_path):
    weights = train(data_dir, tmp_path / "out", learning_rate=0, max_train_steps=4)
    assert all(tensor.abs().max() == 0 for name, tensor in weights.items() if "lora_up" in name)
    latents, timesteps = torch.ones(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        outputs = [
            family.predict(latents, timesteps, family.encode_prompts(["a fox"]))
            for family in (base(), with_lora(tmp_path / "out" / "run.safetensors"))
        ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({"network_train_unet_only": True}, "lora_unet_"),
        ({"network_train_text_encoder_only": True}, "lora_te_text_model_encoder_layers_"),
        ({"text_encoder_lr": 0}, "lora_unet_"),
    ],
    ids=["unet only", "text encoder only", "text encoder rate 0"],
)
def test_only_the_part_asked_for_learns(data_dir, tmp_path, options, prefix):
    weights = train(data_dir, tmp_path / "out", max_train_steps=3, **options)
    learned = [name for name, tensor in weights.items() if "lora_up" in name and tensor.abs().max() > 0]
    assert learned and all(name.startswith(prefix) for name in learned)


def test_training_goes_on_from_a_file(data_dir, tmp_path):
    first = train(data_dir, tmp_path / "first", max_train_steps=3)
    again = train(
        data_dir,
        tmp_path / "again",
        network_weights=tmp_path / "first" / "run.safetensors",
        learning_rate=0,
        max_train_steps=1,
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_ranks_of_a_file_are_taken_from_it(data_dir, tmp_path):
    """Rank 4, and 2 in the convolutions; the options ask for 8 and none."""
    first = train(
        data_dir, tmp_path / "first", max_train_steps=2, network_args="conv_dim=2 conv_alpha=3", network_alpha=2
    )
    options = {"network_weights": tmp_path / "first" / "run.safetensors", "dim_from_weights": True, "network_dim": 8}
    again = train(data_dir, tmp_path / "again", learning_rate=0, max_train_steps=1, **options)
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    with safe_open(tmp_path / "again" / "run.safetensors", "pt") as file:
        assert (file.metadata()["ss_network_dim"], file.metadata()["ss_network_alpha"]) == ("4", "2.0")


def test_base_weights_are_merged_before_training(data_dir, tmp_path):
    """A run that learns nothing has the loss of the model with the LoRA: that of a run that starts from the file."""
    file = tmp_path / "first" / "run.safetensors"
    train(data_dir, tmp_path / "first", learning_rate=1e-2, max_train_steps=3)
    still = {"learning_rate": 0, "max_train_steps": 2}
    train(data_dir, tmp_path / "base", **still)
    train(data_dir, tmp_path / "applied", network_weights=file, **still)
    merged = train(data_dir, tmp_path / "merged", base_weights=file, **still)
    train(data_dir, tmp_path / "none", base_weights=file, base_weights_multiplier=0, **still)
    base, applied, of_merged, of_none = (
        [loss for _, loss in logged(tmp_path / name)] for name in ("base", "applied", "merged", "none")
    )
    assert of_merged == pytest.approx(applied, rel=1e-5) and of_none == base
    assert abs(applied[0] - base[0]) > 1e-4 * base[0]
    assert all(not tensor.any() for name, tensor in merged.items() if "lora_up" in name)  # the file has what is new
    # a resumed run trains on top of them, too
    options = {"base_weights": file, "save_state": True, "learning_rate": 1e-3}
    train(data_dir, tmp_path / "part", max_train_steps=2, **options)
    resumed = train(data_dir, tmp_path / "part", max_train_steps=4, resume="auto", **options)
    assert_same(resumed, train(data_dir, tmp_path / "whole", max_train_steps=4, **options))


def test_the_norms_of_the_updates_are_limited(data_dir, tmp_path):
    weights = train(data_dir, tmp_path / "out", learning_rate=1e-2, max_train_steps=6, scale_weight_norms=0.01)
    names = {name.partition(".")[0] for name in weights}
    norms = []
    for name in names:
        up, down, alpha = (
            weights[f"{name}.{part}"].double() for part in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        norms.append(float((up.flatten(1) @ down.flatten(1)).norm() * alpha / len(down)))
    assert max(norms) == pytest.approx(0.01, rel=1e-5)
    curves = {name: logged(tmp_path / "out", name)[-1][1] for name in LIMITED}
    assert curves["norm/avg_key_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    assert curves["max_norm/max_key_norm"] == pytest.approx(0.01, rel=1e-5)
    assert 0 < curves["max_norm/keys_scaled"] <= len(names)


LIMITED = ("norm/avg_key_norm", "max_norm/max_key_norm", "max_norm/keys_scaled")


def test_gradient_checkpointing_changes_nothing_but_memory(data_dir, tmp_path):
    plain = train(data_dir, tmp_path / "plain", max_train_steps=3)
    saving = train(data_dir, tmp_path / "saving", max_train_steps=3, gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], rtol=1e-4, atol=1e-6)


def test_regularisation_images_count_with_their_weight(tmp_path):
    """One image a batch: the losses of the 12 uses of regularisation images, and no others, scale with it."""
    (tmp_path / "data.toml").write_text(DATASET.replace("batch_size = 4", "batch_size = 1"))
    curves = {}
    for weight in (1.0, 0.25):
        out = tmp_path / str(weight)
        options = {"dataset_config": tmp_path / "data.toml", "learning_rate": 0, "max_train_epochs": 1}
        train(None, out, prior_loss_weight=weight, resolution=None, **options)
        curves[weight] = np.array([value for _, value in logged(out)])
    ratio = curves[0.25] / curves[1.0]
    is_reg = np.isclose(ratio, 0.25, rtol=1e-4)
    assert is_reg.sum() == 12 and np.allclose(ratio[~is_reg], 1, rtol=1e-6) and len(ratio) == 24


def test_saves_have_their_names_precision_and_metadata(data_dir, tmp_path):
    out = tmp_path / "out"
    train(
        data_dir,
        out,
        save_every_n_epochs=1,
        save_every_n_steps=4,
        max_train_epochs=3,
        max_train_steps=None,
        save_precision="bf16",
        network_dim=2,
        network_alpha=0.5,
        training_comment="a comment",
        save_state=True,
    )
    assert {path.name for path in out.iterdir()} - {"logs"} == {
        f"run{suffix}{kind}"
        for suffix in ("", "-000001", "-000002", "-step00000004", "-step00000008", "-step00000012")
        for kind in (".safetensors", "-state")
    }
    with safe_open(out / "run-step00000004.safetensors", "pt") as file:
        metadata = file.metadata()
        assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in file.keys())  # noqa: SIM118
    expected = {
        "ss_steps": "4",
        "ss_epoch": "1",
        "ss_max_train_steps": "15",
        "ss_num_epochs": "3",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "0.5",
        "ss_training_comment": "a comment",
        "ss_sd_model_name": "base",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_resolution": "(64, 64)",
        "ss_seed": "7",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_num_train_images": "10",
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": "5",
        "ss_unet_lr": "None",
        "ss_learning_rate": "0.001",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert json.loads(metadata["ss_dataset_dirs"]) == {"2_shs fox": {"n_repeats": 2, "img_count": 5}}
    assert json.loads(metadata["ss_tag_frequency"])["2_shs fox"]["a shs fox on a blue background"] == 1
    assert len(metadata["sshs_model_hash"]) == 64 and len(metadata["sshs_legacy_hash"]) == 8
    train(data_dir, out, no_metadata=True, max_train_steps=1, overwrite=True)
    with safe_open(out / "run.safetensors", "pt") as file:
        assert {key for key in file.metadata() if key.startswith("ss_")} == {
            "ss_v2",
            "ss_base_model_version",
            "ss_network_module",
            "ss_network_dim",
            "ss_network_alpha",
        }


def test_curves_are_logged_with_the_rate_of_each_part(data_dir, tmp_path):
    options = {"unet_lr": 1e-3, "text_encoder_lr": 1e-4, "lr_scheduler": "linear", "lr_warmup_steps": 2}
    train(data_dir, tmp_path / "out", max_train_steps=4, **options)
    factors = [0, 0.5, 1, 0.5]
    for name, base_rate in (("lr/unet", 1e-3), ("lr/textencoder", 1e-4)):
        curve = logged(tmp_path / "out", name)
        assert curve == [(i + 1, pytest.approx(base_rate * f, rel=1e-6)) for i, f in enumerate(factors)]
