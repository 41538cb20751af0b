"""An adapter file that Diffusers reads otherwise than we trained it would give other images than the samples."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from networks.lora import create_network, create_network_from_weights

pytest.importorskip("peft", reason="Diffusers reads adapters with peft")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("network_args", [{}, {"conv_dim": "2", "conv_alpha": "1"}], ids=["linear", "conv"])
def test_diffusers_gives_the_output_of_the_file(tmp_path, clip_model, unet, randomize, network_args, dtype):
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    token_ids, hidden_states = torch.randint(3, 64, (2, 7)), torch.randn(2, 7, 16)

    def outputs():
        with torch.no_grad():
            return unet(latents, timesteps, hidden_states).sample, clip_model(token_ids)[0]

    before = outputs()
    network = randomize(create_network(1.0, 4, 2, None, clip_model, unet, **network_args))
    network.save_weights(tmp_path / "adapter.safetensors", dtype, None)
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=clip_model,
        tokenizer=None,
        unet=unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    theirs = outputs()
    pipeline.unload_lora_weights()
    file = tmp_path / "adapter.safetensors"
    network, _ = create_network_from_weights(1.0, file, None, clip_model, unet)  # as rounded as the file
    network.apply_to(clip_model, unet, True, True)
    ours = outputs()
    for our, their, base in zip(ours, theirs, before, strict=True):
        assert (our - base).abs().max() > 1e-2
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5)
