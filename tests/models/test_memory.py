"""What saves memory leaves the numbers what they are, as far as its precision goes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from library.models.family import LoadSettings
from library.models.options import MemoryOptions, ModelOptions
from library.models.registry import load_family


def _load(folder: Path, **memory):
    return load_family(ModelOptions(str(folder)), settings=LoadSettings(memory=MemoryOptions(**memory)))


def _predict(family) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return family.predict(latents, torch.tensor([3, 900]), family.encode_prompts(["a cat", "a dog"]))


@pytest.mark.parametrize("memory", [{"mem_eff_attn": True}, {"vae_slicing": True}, {"sdpa": True}])
def test_attention_and_slices_change_nothing(folder: Path, memory: dict) -> None:
    plain, other = _load(folder), _load(folder, **memory)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(_predict(other), _predict(plain), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(other.encode_images(pixels, [1, 2]), plain.encode_images(pixels, [1, 2]))


@pytest.mark.parametrize("flag", ["fp8_base", "fp8_base_unet"])
def test_8_bit_weights_are_rounded_and_gradients_still_flow(folder_v1: Path, flag: str) -> None:
    family = _load(folder_v1, **{flag: True})
    layer = family.unet.down_blocks[0].resnets[0].conv1
    exact = load_family(ModelOptions(str(folder_v1))).unet.down_blocks[0].resnets[0].conv1.weight
    assert layer.weight.dtype == torch.float8_e4m3fn
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    # 3 bits of mantissa: half a unit in the last place is 1/16 of the value; below 2^-6 steps are 2^-9
    assert ((layer.weight.float() - exact).abs() <= exact.abs() / 16 + 2**-10).all()
    expected = torch.nn.functional.conv2d(x, layer.weight.float(), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    (plain,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        assert torch.isfinite(_predict(family)).all()


@pytest.mark.parametrize("model", ["folder_v1", "sdxl_folder"])
def test_a_vae_that_overflows_in_fp16_is_done_in_float32_with_one_warning(model: str, request, caplog) -> None:
    half, path = LoadSettings(dtypes={"vae": torch.float16}), str(request.getfixturevalue(model))
    reference, family = (load_family(ModelOptions(path), settings=each) for each in (None, half))
    for each in (reference, family):  # 65504 is the largest number of fp16
        each.vae.encoder.conv_in.weight.data.mul_(0).add_(3e4)
        each.vae.decoder.conv_in.weight.data.mul_(0).add_(3e4)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with caplog.at_level(logging.WARNING):
        encoded, decoded = family.encode_images(pixels, [1, 2]), family.decode_latents(latents)
    torch.testing.assert_close(encoded, reference.encode_images(pixels, [1, 2]), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(decoded, reference.decode_latents(latents), atol=2e-2, rtol=2e-2)
    assert sum("overflows in fp16" in record.message for record in caplog.records) == 1
    assert family.vae.dtype == torch.float16


def test_a_vae_in_float32_computes_in_it_inside_an_autocast(folder_v1: Path) -> None:
    """As samples are drawn: `--no_half_vae` would do nothing there, and fp16 gives black images."""
    family = _load(folder_v1)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    decoded, encoded = family.decode_latents(latents), family.encode_images(pixels, [1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(family.decode_latents(latents), decoded)
        assert torch.equal(family.encode_images(pixels, [1]), encoded)


def test_a_vae_set_aside_still_decodes(folder_v1: Path) -> None:
    family = _load(folder_v1)
    latents = torch.randn(1, 4, 8, 8)
    before = family.decode_latents(latents)
    family.offload_vae()
    assert torch.equal(family.decode_latents(latents), before)
