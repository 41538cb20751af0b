"""What is of no known family is called by its name; what is of one is not refused for what it holds beside."""

from __future__ import annotations

import pytest

from library.models.weights.model_kinds import kind_of_keys

SD1 = ("model.diffusion_model.out.2.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias")
SDXL = ("model.diffusion_model.out.2.bias", "conditioner.embedders.1.model.ln_final.bias")
SD2 = ("model.diffusion_model.out.2.bias", "cond_stage_model.model.ln_final.bias")


@pytest.mark.parametrize("keys", [SD1, SD2, SDXL])
@pytest.mark.parametrize("front", ["", "state_dict.", "model.", "module."])
@pytest.mark.parametrize("beside", ["lora_unet_x.alpha", "control_model.a", "emb_params", "model_ema.decay", "v_pred"])
def test_a_known_family_is_none_of_the_other_kinds(keys, front, beside):
    assert kind_of_keys([beside, *(front + key for key in keys)]) is None


def test_a_text_encoder_without_its_usual_front_is_no_other_kind():
    assert kind_of_keys([SD1[0], SD1[1].removeprefix("cond_stage_model.")]) is None


# keys of the files that were published; those of networks also come with model.diffusion_model. in front
FAMILIES = {
    "Stable Diffusion 3": "joint_blocks.0.context_block.adaLN_modulation.1.bias",
    "FLUX": "double_blocks.0.img_attn.norm.key_norm.scale",
    "Lumina": "cap_embedder.0.weight",
    "AuraFlow": "double_layers.0.attn.w1q.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("front", ["", "model.diffusion_model."])
def test_other_families_are_named(family, front):
    key = front + FAMILIES[family]
    kind = kind_of_keys(["model.diffusion_model.other.weight", key, "first_stage_model.encoder.conv_in.weight"])
    assert kind is not None and kind.family == family
    assert kind.phrase == f"{'an' if family == 'AuraFlow' else 'a'} {family} model"


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (("double_blocks.0.a", "distilled_guidance_layer.in_proj.bias"), "Chroma"),
        (("double_blocks.0.a", "single_stream_modulation.lin.weight"), "FLUX.2"),
        (("double_blocks.0.a", "txt_in.individual_token_refiner.blocks.0.a"), "HunyuanVideo"),
        (
            ("conditioner.embedders.0.a", "model.diffusion_model.input_blocks.1.0.time_stack.a"),
            "Stable Video Diffusion",
        ),
        (("cap_embedder.0.weight", "layers.0.adaLN_modulation.0.weight"), "Z-Image"),
    ],
)
def test_families_that_share_keys_are_distinguished(keys, family):
    assert kind_of_keys(keys).family == family
    assert kind_of_keys(keys[::-1]).family == family


@pytest.mark.parametrize(
    ("key", "phrase"),
    [
        ("unet.down_blocks.0.attentions.0.to_q.lora.down.weight", "an adapter (LoRA), not a whole model"),
        ("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", "an adapter (LoRA), not a whole model"),
        ("lycoris_unet_x.lokr_w1", "an adapter (LoRA), not a whole model"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("text_model.embeddings.token_embedding.weight", "a text encoder alone"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a text encoder alone"),  # T5
        ("IN01", "a textual inversion embedding"),
        ("clip_g", "a textual inversion embedding"),
    ],
)
def test_what_is_no_whole_model_is_called_what_it_is(key, phrase):
    kind = kind_of_keys(["down_blocks.0.a", key] if "controlnet" in key else [key])
    assert (kind.phrase, kind.family) == (phrase, None)
