"""If these fail, what saves memory does nothing for Stable Diffusion XL, or changes what it should leave alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from library.data.caches.latent_cache import latent_seed
from library.data.images.decoding import load_image
from tests.end_to_end.runs import assert_same, logged
from tests.end_to_end.sdxl_runs import SEED, load_images, loss_of, run
from tests.tiny_models import make_sdxl_pipeline

WHOLE = {"optimizer_type": "AdaFactor", "max_grad_norm": 0, "max_train_steps": 2}  # no fused step clips gradients


@pytest.fixture
def in_fp8(tiny_sdxl):
    """Diffusers' pipeline with the weights of all linear and convolutional layers of the U-Net rounded to fp8."""
    model = copy.deepcopy(tiny_sdxl)
    for layer in model.unet.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn).float()
    pipe = make_sdxl_pipeline(model)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)  # whose `add_noise` takes any timesteps
    return pipe


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-6), ("bf16", 1e-2)])
def test_fp8_base_rounds_the_weights_of_the_unet_and_nothing_else(
    in_fp8, tiny_sdxl, sdxl_base, sdxl_images, tmp_path, precision, tolerance
):
    """The first loss, when the LoRA does nothing yet, is that of Diffusers' U-Net with rounded weights."""
    options = {"fp8_base": True, "gradient_checkpointing": True, "mixed_precision": precision, "max_train_steps": 2}
    weights = run("sdxl_train_network", sdxl_base, sdxl_images, tmp_path, logging_dir=tmp_path / "logs", **options)
    data = load_images(sdxl_images)
    with torch.no_grad():
        expected = float(loss_of(in_fp8, data, data.batches_of_epoch(SEED, 0)[0]))
    assert logged(tmp_path)[0][1] == pytest.approx(expected, rel=tolerance)
    moved = [name for name, tensor in load_file(weights).items() if "lora_up" in name and tensor.abs().max() > 0]
    assert any(name.startswith("lora_unet_input_blocks") for name in moved)
    assert any(name.startswith("lora_te2_") for name in moved)


@pytest.mark.parametrize("precision", [{}, {"mixed_precision": "bf16", "full_bf16": True}], ids=["float32", "bf16"])
def test_a_fused_backward_pass_with_checkpoints_trains_the_same_whole_model(
    tiny_sdxl, sdxl_base, sdxl_images, tmp_path, precision
):
    options = {**WHOLE, **precision, "train_text_encoder": True}
    usual = load_file(run("sdxl_train", sdxl_base, sdxl_images, tmp_path / "usual", **options))
    saving = {"fused_backward_pass": True, "gradient_checkpointing": True, "lowram": True}
    fused = load_file(run("sdxl_train", sdxl_base, sdxl_images, tmp_path / "fused", **options, **saving))
    assert_same(fused, usual)
    output = "model.diffusion_model.out.2.weight"
    assert not torch.equal(fused[output], tiny_sdxl.unet.conv_out.weight)
    if precision:  # trained weights are stored so, whatever they are saved as
        trained = [each for name, each in fused.items() if name.startswith("model.diffusion_model.")]
        assert_same(dict(enumerate(trained)), dict(enumerate(each.bfloat16().to(each.dtype) for each in trained)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["no_half_vae", "bf16"])
def test_no_half_vae_gives_the_latents_of_a_vae_in_float32(tiny_sdxl, sdxl_base, sdxl_images, tmp_path, dtype):
    options = {"mixed_precision": "bf16", "no_half_vae": dtype == torch.float32, "cache_latents_to_disk": True}
    run("train_network", sdxl_base, sdxl_images, tmp_path, network_train_unet_only=True, max_train_steps=1, **options)
    (dataset,) = load_images(sdxl_images).datasets
    vae = torch.nn.Module.to(copy.deepcopy(tiny_sdxl.vae), dtype)
    key = dataset.latent_key(0, False)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(load_image(key).pixels)[None].to(dtype)).latent_dist
    noise = torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(latent_seed(key)))
    expected = (posterior.mean.float() + torch.exp(0.5 * posterior.logvar.float()) * noise)[0]
    (cache,) = (sdxl_images / "2_shs fox").glob(f"{Path(dataset.records[0].path).stem}_*_sdxl.npz")
    with np.load(cache) as file:
        (name,) = (name for name in file.files if name.startswith("latents_") and "flipped" not in name)
        torch.testing.assert_close(torch.from_numpy(file[name]), expected, atol=1e-6, rtol=0)
