"""A user's model, in any layout, is detected and loaded offline; contradictions are errors."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file, save_file

from library.cli.errors import UserError
from library.models.conditioning import TextStates
from library.models.family import LoadSettings
from library.models.latent_diffusion.betas import make_alphas_cumprod
from library.models.options import ModelOptions
from library.models.registry import detect_model, load_family
from library.models.stable_diffusion.detection import detect
from library.models.stable_diffusion.layout import layout_of
from library.models.weights.model_files import ModelFolder


def load(path: Path, **flags):
    return load_family(ModelOptions(str(path), **flags))


@pytest.fixture(scope="module")
def family(folder_v1):
    """A loaded SD 1.x model that tests leave as it is."""
    return load(folder_v1)


def assert_like_original(family, original, *, atol=1e-5):
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([3, 900])
    with torch.no_grad():
        conditioning = family.encode_prompts(["a cat", "! a dog"])
        text = original.text_encoder(family.tokenizer.encode(["a cat", "! a dog"]).ids[:, 0]).last_hidden_state
        torch.testing.assert_close(conditioning.hidden_states, text, atol=atol, rtol=0)
        expected = original.unet(latents, timesteps, text).sample
        torch.testing.assert_close(family.predict(latents, timesteps, conditioning), expected, atol=atol, rtol=0)
        expected = original.vae.decode(latents / 0.18215).sample
        torch.testing.assert_close(family.decode_latents(latents), expected, atol=atol, rtol=0)


# ---- forms


def test_a_diffusers_folder_gives_the_original_outputs(tiny, folder):
    family = load(folder)
    assert_like_original(family, tiny)
    assert family.version == ("sd_v2" if tiny.is_v2 else "sd_v1")
    assert family.architecture == ("stable-diffusion-v2-512" if tiny.is_v2 else "stable-diffusion-v1")
    assert (family.latent_channels, family.vae_scale, family.process.prediction_type) == (4, 2, "epsilon")
    assert family.encode_prompts(["x"]).hidden_states.shape == (1, 77, 64)
    assert family.tokenizer.encode([""]).ids[0, 0, -1] == (0 if tiny.is_v2 else 49407)
    for module in (family.unet, family.vae, *family.text_encoders):
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_single_files_are_distinguished_and_loaded(tiny_v1, tiny_v2, file_v1, file_v2):
    for path, original, version in ((file_v1, tiny_v1, "sd_v1"), (file_v2, tiny_v2, "sd_v2")):
        family = load(path)
        assert family.version == version
        assert_like_original(family, original)


@pytest.mark.parametrize("front", ["state_dict.", "model.", "module."])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_what_programs_put_in_front_of_keys_is_taken_off(tiny_v1, stability_layout, tmp_path, front, ending):
    tensors = {front + key: value for key, value in stability_layout(tiny_v1).items()}
    tensors[front + "model_ema.decay"] = torch.zeros(1)
    path = tmp_path / f"model{ending}"
    save_file(tensors, path) if ending == ".safetensors" else torch.save({"model": tensors}, path)
    assert_like_original(load(path), tiny_v1)


def test_a_text_encoder_without_its_usual_front_is_found(tiny_v1, stability_layout, tmp_path):
    tensors = {key.removeprefix("cond_stage_model."): value for key, value in stability_layout(tiny_v1).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_like_original(load(tmp_path / "model.safetensors"), tiny_v1)


def test_all_forms_of_a_model_have_the_same_vae_fingerprint(folder_v1, file_v1):
    assert load(folder_v1).vae_fingerprint() == load(file_v1).vae_fingerprint()


@pytest.mark.parametrize("saving", [{"variant": "fp16"}, {"safe_serialization": False}], ids=["fp16 names", "bin"])
def test_other_file_names_of_diffusers_are_found(tiny_v1, folder_writer, tmp_path, saving):
    folder = folder_writer(tiny_v1, tmp_path, **saving)
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert_like_original(load(folder), tiny_v1)


def test_a_text_encoder_saved_as_pickle_with_the_level_text_model_is_read(tiny_v1, folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    (folder / "text_encoder" / "model.safetensors").unlink()
    weights = {key.removeprefix("text_model."): value for key, value in tiny_v1.text_encoder.state_dict().items()}
    weights = {f"text_model.{key}": value for key, value in weights.items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(weights, folder / "text_encoder" / "pytorch_model.bin")
    assert_like_original(load(folder), tiny_v1)


def test_an_old_folder_with_old_names_of_vae_attention_is_read(tiny_v1, folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for ours, theirs in old.items():
        weights = {key.replace(f".{ours}.", f".{theirs}."): value for key, value in weights.items()}
    save_file(weights, path)
    assert_like_original(load(folder), tiny_v1)


def test_half_precision_files_are_computed_in_float32(tiny_v1, folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    for path in folder.glob("*/*.safetensors"):
        save_file({key: value.half() for key, value in load_file(path).items()}, path)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    family = load(folder)
    for module in (family.unet, family.vae, *family.text_encoders):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert_like_original(family, tiny_v1, atol=0.05)


def test_loading_touches_no_network_and_draws_no_bars(folder, file_v2, monkeypatch, capsys):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(folder).encode_prompts(["a cat"])
    load(file_v2).encode_prompts(["a cat"])
    captured = capsys.readouterr()
    assert "%|" not in captured.err + captured.out


# ---- what the model says, and what its user says


@pytest.mark.parametrize("form", ["folder_v1", "file_v1"])
def test_v2_for_a_1x_model_is_an_error_that_says_what_the_model_is(form, request):
    with pytest.raises(UserError, match="--v2 was given, but .* is Stable Diffusion 1.x"):
        load(request.getfixturevalue(form), v2=True)


def test_v2_may_be_given_or_left_out_for_a_2x_model(file_v2):
    assert load(file_v2).version == load(file_v2, v2=True).version == "sd_v2"


@pytest.mark.parametrize(
    ("part", "sign"),
    [
        ("text_encoder", {"hidden_act": "gelu"}),
        ("text_encoder", {"hidden_size": 1024}),
        ("unet", {"use_linear_projection": True}),
        ("unet", {"attention_head_dim": [5, 10, 20, 20]}),
        (None, {}),
    ],
)
def test_each_sign_of_a_2x_folder_is_enough(tmp_path, part, sign):
    configs = {
        "text_encoder": {"hidden_act": "quick_gelu", "hidden_size": 768},
        "unet": {"use_linear_projection": False, "attention_head_dim": 8},
        "vae": {},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | (sign if name == part else {})))
    assert detect(ModelFolder(tmp_path)).layout is layout_of(part is not None)


def test_v_prediction_of_a_folder_is_used_without_the_flag_and_logged(tiny_v2, folder_writer, tmp_path, caplog):
    folder = folder_writer(tiny_v2, tmp_path, prediction_type="v_prediction")
    with caplog.at_level(logging.INFO):
        family = load(folder)
    assert (family.process.prediction_type, family.version) == ("v_prediction", "sd_v2_v")
    assert family.architecture == "stable-diffusion-v2-768-v"
    assert "predicts v" in caplog.text
    assert load(folder, v_parameterization=True).process.prediction_type == "v_prediction"


def test_v_parameterization_turns_a_folder_that_says_epsilon_into_a_v_model_with_a_warning(folder, caplog):
    family = load(folder, v_parameterization=True)
    is_v2 = family.is_v2
    assert family.process.prediction_type == "v_prediction"
    assert family.version == ("sd_v2_v" if is_v2 else "sd_v1_v")
    assert family.architecture == ("stable-diffusion-v2-768-v" if is_v2 else "stable-diffusion-v1")
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(folder) in warning.message and "predicts noise (epsilon)" in warning.message
    assert "--v_parameterization" in warning.message


def test_v2_for_a_1x_model_stays_an_error_beside_v_parameterization(folder_v1):
    with pytest.raises(UserError, match="--v2 was given"):
        load(folder_v1, v2=True, v_parameterization=True)


def test_a_folder_that_says_nothing_follows_the_flag(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    shutil.rmtree(folder / "scheduler")
    assert load(folder).process.prediction_type == "epsilon"
    assert load(folder, v_parameterization=True).process.prediction_type == "v_prediction"


def test_a_single_file_follows_the_flag_its_metadata_or_its_v_pred_key(tiny_v2, stability_layout, tmp_path, caplog):
    tensors = stability_layout(tiny_v2)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert load(path).process.prediction_type == "epsilon"
    assert "--v_parameterization" in caplog.text  # the file cannot say, so the user is warned
    assert load(path, v_parameterization=True).process.prediction_type == "v_prediction"
    save_file(tensors, path, metadata={"modelspec.prediction_type": "v"})
    assert load(path).process.prediction_type == "v_prediction"
    save_file(tensors, path, metadata={"modelspec.prediction_type": "epsilon"})
    caplog.clear()
    assert load(path).process.prediction_type == "epsilon" and not caplog.text
    assert load(path, v_parameterization=True).process.prediction_type == "v_prediction"
    assert "predicts noise (epsilon)" in caplog.text
    save_file({**tensors, "v_pred": torch.zeros(0)}, path)
    assert load(path).process.prediction_type == "v_prediction"


def test_a_prediction_type_that_is_not_known_is_an_error(tiny_v1, folder_writer, tmp_path):
    with pytest.raises(UserError, match="prediction_type is 'sample'"):
        load(folder_writer(tiny_v1, tmp_path, prediction_type="sample"))


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_the_noise_schedule_is_that_of_the_schedulers_config(kind):
    config = {"beta_schedule": kind, "beta_start": 0.001, "beta_end": 0.02, "num_train_timesteps": 500}
    expected = DDPMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(make_alphas_cumprod(config, "x"), expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("betas", [None, [0.01, 0.02, 0.05, 0.1]])
def test_a_schedulers_zero_terminal_snr_is_followed(betas):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": betas}
    config = {**config, "num_train_timesteps": 4 if betas else 1000, "rescale_betas_zero_snr": True}
    expected = DDIMScheduler(**config).alphas_cumprod
    found = make_alphas_cumprod(config, "x")
    assert found[-1] == 0
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)


def test_the_usual_noise_schedule_is_taken_for_single_files(file_v1):
    alphas = load(file_v1).process.schedule.alphas_cumprod
    assert alphas.shape == (1000,) and alphas.dtype == torch.float32
    for timestep, value in {0: 0.99914998, 370: 0.47329462, 999: 0.0046601}.items():
        assert alphas[timestep].item() == pytest.approx(value, abs=1e-7)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(UserError, match="squaredcos"):
        make_alphas_cumprod({"beta_schedule": "squaredcos_cap_v2"}, "x")


# ---- models that are none


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "an adapter"),
        ("conditioner.embedders.0.weight", "a variant of Stable Diffusion XL"),
        ("model.diffusion_model.out.2.weight", "without a text encoder"),
        ("anything", "not a model of a known family"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, key, message):
    save_file({key: torch.zeros(2)}, tmp_path / "some.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "some.safetensors")
    assert "some.safetensors" in caught.value.message


def test_a_folder_of_another_pipeline_is_called_what_it_is(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    (folder / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    with pytest.raises(UserError, match="model is a Kolors model"):
        load(folder)


def change_config(folder: Path, name: str, **changes) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


def test_weights_that_do_not_fit_their_config_are_named(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    change_config(folder, "unet/config.json", cross_attention_dim=128)
    change_config(folder, "text_encoder/config.json", num_hidden_layers=3)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "attn2.to_k.weight has the shape" in str(caught.value)
    assert "keys of the text encoder: text_model.encoder.layers.2" in str(caught.value)


def test_a_tokenizer_with_more_words_than_the_text_encoder_is_refused(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({**vocabulary, "qqanotherqq": 49408}), encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer has 49409 tokens, the text encoder 49408"):
        load(folder)


def test_a_folder_without_a_tokenizer_uses_the_shipped_one(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    shutil.rmtree(folder / "tokenizer")
    assert load(folder).tokenizer.encode(["a cat"]).ids[0, 0, :4].tolist() == [49406, 320, 2368, 49407]


def test_a_config_that_is_nonsense_is_a_user_error(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    change_config(folder, "unet/config.json", down_block_types=["NoSuchBlock"])
    change_config(folder, "vae/config.json", down_block_types=["NoSuchBlock"])
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "the U-Net cannot be built from its configuration" in str(caught.value)
    assert "the VAE cannot be built from its configuration" in str(caught.value)
    for part in ("unet", "vae"):
        (folder / part / "config.json").write_text("{")
    with pytest.raises(UserError) as caught:  # known without the weights
        detect_model(ModelOptions(str(folder)))
    assert "unet/config.json is not valid JSON" in str(caught.value)
    assert "vae/config.json is not valid JSON" in str(caught.value)


# ---- images, precision, checkpointing


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_latent_depends_on_its_image_and_seed_alone(family):
    together = family.encode_images(images(), [11, 12])
    assert together.shape == (2, 4, 8, 12) and together.dtype == torch.float32
    for index, seed in enumerate([11, 12]):
        alone = family.encode_images(images()[index : index + 1], [seed])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=0)
    assert torch.equal(family.encode_images(images(), [11, 12]), together)
    assert (family.encode_images(images(), [11, 13])[1] - together[1]).abs().max() > 1e-3


def test_latents_are_unscaled_samples_of_the_vaes_distribution(folder_v1):
    family = load(folder_v1)
    family.vae.quant_conv.bias[4:] -= 2  # a narrow distribution: the logarithms of its variance are below 0
    pixels = images()[:1]
    with torch.no_grad():
        posterior = family.vae.encode(pixels).latent_dist
    assert posterior.std.median() < 0.5
    latents = family.encode_images(pixels.expand(100, -1, -1, -1), range(100))
    noise = (latents - posterior.mean) / posterior.std  # 100 x 384 numbers
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03  # five standard errors and more
    torch.testing.assert_close(family.scale_latents(latents[0]), latents[0] * 0.18215)


def test_a_seed_for_each_image_is_demanded(family):
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        family.encode_images(images(), [1])


def test_the_folders_own_scale_and_shift_are_used(folder_v1, tmp_path):
    folder = Path(shutil.copytree(folder_v1, tmp_path / "model"))
    change_config(folder, "vae/config.json", scaling_factor=0.42)
    assert load(folder).scale_latents(torch.ones(1)).item() == pytest.approx(0.42)
    plain, latents = load(folder), torch.randn(1, 4, 4, 4)
    change_config(folder, "vae/config.json", shift_factor=0.1)  # as VAEs of 16 channels have one
    shifted = load(folder)
    assert shifted.scale_latents(torch.ones(1)).item() == pytest.approx((1 - 0.1) * 0.42)
    decoded = plain.decode_latents(plain.scale_latents(latents))
    torch.testing.assert_close(shifted.decode_latents(shifted.scale_latents(latents)), decoded)


def test_parts_may_be_of_different_precision(folder_v1):
    as_loaded = load(folder_v1).vae_fingerprint()
    settings = LoadSettings(dtypes={"unet": torch.bfloat16, "vae": torch.bfloat16})
    family = load_family(ModelOptions(str(folder_v1)), settings=settings)
    assert family.unet.conv_in.weight.dtype == torch.bfloat16
    conditioning = family.encode_prompts(["a cat"])
    assert conditioning.hidden_states.dtype == torch.float32
    assert family.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning).dtype == torch.bfloat16
    latents = family.encode_images(images(), [1, 2])
    assert latents.dtype == torch.float32
    assert family.decode_latents(latents).dtype == torch.float32
    assert family.vae_fingerprint() != as_loaded


def test_another_vae_has_another_fingerprint(folder_v1):
    family = load(folder_v1)
    before = family.vae_fingerprint()
    assert len(before) == 16 and before == family.vae_fingerprint()
    other = load(folder_v1)
    other.vae.decoder.conv_out.bias.data += 1
    assert other.vae_fingerprint() != before


def input_layer_gradient(family) -> tuple[torch.Tensor, int]:
    """The gradient of one U-Net layer, and how often a layer ran in that step."""
    counts = []
    hook = family.unet.up_blocks[1].resnets[0].conv1.register_forward_hook(lambda *_: counts.append(1))
    weight = family.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.requires_grad_(True)
    weight.grad = None
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
    family.predict(latents, torch.tensor([10]), TextStates(text)).square().mean().backward()
    hook.remove()
    return weight.grad, len(counts)


def test_gradient_checkpointing_computes_twice_and_changes_no_gradient(folder_v1):
    family = load(folder_v1)
    plain, num_runs = input_layer_gradient(family)
    assert num_runs == 1 and plain.abs().max() > 0
    family = load_family(ModelOptions(str(folder_v1)), settings=LoadSettings(gradient_checkpointing=True))
    checkpointed, num_runs = input_layer_gradient(family)
    assert num_runs == 2
    torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)
    assert family.unet.training and family.text_encoders[0].training  # older versions look at this


def test_adapters_are_offered_the_unet_and_the_text_encoder(family):
    roots = family.adapter_roots()
    assert roots.unet is family.unet and roots.text_encoders == family.text_encoders
    assert "text_model.encoder.layers.0.self_attn.q_proj" in dict(roots.text_encoders[0].named_modules())
