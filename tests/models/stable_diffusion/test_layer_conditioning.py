"""If these fail, words with vectors for each layer (XTI) say to layers what they were not trained to say."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from library.cli.errors import UserError
from library.models.conditioning import TextStates
from library.models.family import LoadSettings
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.stable_diffusion.layer_conditioning import cross_attention_layers
from library.models.stable_diffusion.model import TABLE
from library.models.text.token_embedding import TokenEmbedding
from tests.tiny_models import make_tiny, write_folder

# those of Stable Diffusion 1.x and 2.x, in the order of computation: 2303.09522, section 3
SIXTEEN = [
    "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID",
    "OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11",
]  # fmt: skip
PATHS = ["down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
PROMPTS = ["a <fox> on a hill", "", "two <fox>"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tiny = make_tiny(False)
    return tiny, write_folder(tiny, tmp_path_factory.mktemp("model"))


def load(models, **options):
    options = ModelOptions(pretrained_model_name_or_path=str(models[1]), **options)
    return load_family(options)


def noisy(count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, 8, 8, generator=generator), torch.tensor([1, 500, 900])[:count]


def test_a_u_net_of_stable_diffusion_has_sixteen():
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), cross_attention_dim=64, norm_num_groups=8)
    layers = cross_attention_layers(unet)
    assert list(layers) == SIXTEEN
    assert layers["IN08"] == "down_blocks.2.attentions.1" and layers["OUT03"] == "up_blocks.1.attentions.0"


def test_names_follow_the_build_of_a_smaller_u_net(models):
    layers = cross_attention_layers(load(models).unet)
    assert layers == dict(zip(["IN01", "MID", "OUT02", "OUT03"], PATHS, strict=True))


def test_a_u_net_of_another_build_is_refused():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
        )
    with pytest.raises(UserError, match="of the U-Net's 6 cross-attention layers"):
        cross_attention_layers(unet)


def test_equal_vectors_for_all_layers_are_exactly_one_vector(models):
    """Prompts with and without the token, weighted, of a batch as classifier-free guidance makes it."""
    vectors = torch.randn((1, 2, 64), generator=torch.Generator().manual_seed(2)) * 0.05
    plain, layered = load(models), load(models)
    plain.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", vectors)})
    layered.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", vectors.expand(4, -1, -1))})
    prompts = ["", "a (<fox>:1.4) on a hill"]
    latents, timesteps = noisy(2)
    with torch.no_grad():
        states = [family.encode_prompts(prompts, weighted=True) for family in (plain, layered)]
        assert states[1].hidden_states.shape == (4, *states[0].hidden_states.shape)
        predicted = [
            family.predict(latents, timesteps, each) for family, each in zip((plain, layered), states, strict=True)
        ]
    assert torch.equal(*predicted)


class OwnStates(AttnProcessor2_0):
    """Diffusers' own attention, given other hidden states than its caller passes."""

    def __init__(self, states):
        super().__init__()
        self.states = states

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        return super().__call__(attn, hidden_states, self.states, *args, **kwargs)


def test_each_layer_sees_its_own_and_only_its_cross_attention(models):
    """Against Diffusers' U-Net, where the processor of each cross-attention brings the states of its layer."""
    torch.manual_seed(5)
    tiny, _ = models
    family = load(models)
    family.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", torch.randn(4, 1, 64))})
    states = torch.randn(4, 3, 77, 64)
    latents, timesteps = noisy()
    with torch.no_grad():
        found = family.predict(latents, timesteps, TextStates(states))
        processors = dict(tiny.unet.attn_processors)
        own = {
            f"{path}.transformer_blocks.0.attn2.processor": OwnStates(states[index]) for index, path in enumerate(PATHS)
        }
        assert own.keys() <= processors.keys()
        tiny.unet.set_attn_processor({**processors, **own})
        expected = tiny.unet(latents, timesteps, torch.zeros(3, 77, 64)).sample
        tiny.unet.set_attn_processor(processors)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, family.predict(latents, timesteps, TextStates(states.flip(0))))


def test_states_of_a_layer_are_those_of_its_vectors(models):
    plain, layered = load(models), load(models)
    vectors = torch.randn(4, 2, 64) * 0.05
    layered.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", vectors)})
    embedding = TokenEmbedding("<fox>", vectors[:1])
    plain.add_token(embedding.text, {TABLE: embedding})
    with torch.no_grad():
        found = layered.encode_prompts(PROMPTS).hidden_states
        for layer in range(4):
            embedding.vectors.copy_(vectors[layer : layer + 1])
            torch.testing.assert_close(found[layer], plain.encode_prompts(PROMPTS).hidden_states)
    assert torch.equal(found[0, 1], found[3, 1]) and not torch.allclose(found[0, 0], found[3, 0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_each_layer(models, checkpointing):
    """By autograd, against differences of the loss in float64; also where activations are computed again."""
    torch.manual_seed(5)
    double = torch.float64
    family = load_family(
        ModelOptions(str(models[1])),
        settings=LoadSettings(
            dtypes=dict.fromkeys(("unet", "text_encoder", "vae"), double), gradient_checkpointing=checkpointing
        ),
    )
    embedding = TokenEmbedding("<fox>", torch.randn(4, 1, 64) * 0.05).to(double)
    family.add_token(embedding.text, {TABLE: embedding})
    latents, timesteps = noisy()

    def loss():
        return family.predict(latents, timesteps, family.encode_prompts(PROMPTS)).square().mean()

    loss().backward()
    start, direction = embedding.vectors.detach().clone(), torch.randn(4, 1, 64, dtype=double)
    for layer in range(4):
        step = torch.zeros_like(start)
        step[layer] = 1e-4 * direction[layer]
        with torch.no_grad():
            losses = [(embedding.vectors.copy_(start + side * step), loss())[1] for side in (1, -1)]
        gradient = (embedding.vectors.grad[layer] * direction[layer]).sum()
        torch.testing.assert_close(gradient, (losses[0] - losses[1]) / 2e-4, rtol=1e-3, atol=1e-12)
        assert gradient != 0


def test_conditioning_for_all_layers_alike_still_works(models):
    plain, layered = load(models), load(models)
    layered.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", torch.randn(4, 1, 64))})
    latents, timesteps = noisy()
    states = TextStates(torch.randn(3, 77, 64))
    with torch.no_grad():
        assert torch.equal(*(family.predict(latents, timesteps, states) for family in (plain, layered)))
