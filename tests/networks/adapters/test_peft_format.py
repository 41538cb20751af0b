"""Files of PEFT and Diffusers must be what they are there, read and written: both programs are asked."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from library.cli.errors import UserError
from networks.adapters.files import load_adapter
from networks.adapters.formats.peft import own_form, peft_form
from networks.lora import create_network, create_network_from_weights

peft = pytest.importorskip("peft", reason="makes and reads these files")
UNET_TARGETS = ["to_q", "to_k", "to_out.0", "proj_in", "conv1"]
TEXT_TARGETS = ["q_proj", "fc1"]


@pytest.fixture
def outputs(clip_model, unet):
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    token_ids, hidden_states = torch.randint(3, 64, (2, 7)), torch.randn(2, 7, 16)

    def run(unet=unet, text_encoder=clip_model):
        with torch.no_grad():
            return unet(latents, timesteps, hidden_states).sample, text_encoder(token_ids)[0]

    return run


@pytest.fixture
def pipeline(clip_model, unet):
    parts = dict.fromkeys(("vae", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(text_encoder=clip_model, unet=unet, **parts, requires_safety_checker=False)


def randomize_adapter(model):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(parameter.abs() * 1.5 if "magnitude" in name else torch.randn_like(parameter) * 0.2)


def assert_close(ours, theirs, base):
    for our, their, plain in zip(ours, theirs, base, strict=True):
        assert (their - plain).abs().max() > 1e-2
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 3},
        {"lora_alpha": 3, "use_rslora": True, "alpha_pattern": {"to_k": 8}, "rank_pattern": {"to_k": 2}},
        {"lora_alpha": 4, "use_dora": True},
    ],
    ids=["lora", "patterns", "dora"],
)
def test_a_file_of_diffusers_is_read_as_it_was_trained(tmp_path, clip_model, unet, outputs, settings):
    models, layers, metadata = [], {}, {}
    for part, model, targets in (("unet", unet, UNET_TARGETS), ("text_encoder", clip_model, TEXT_TARGETS)):
        config = peft.LoraConfig(r=4, target_modules=targets, **settings)
        models.append(peft.inject_adapter_in_model(config, copy.deepcopy(model)))
        randomize_adapter(models[-1])
        layers[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(models[-1])
        metadata[f"{part}_lora_adapter_metadata"] = {**config.to_dict(), "peft_type": "LORA", "task_type": None}
    base, theirs = outputs(), outputs(*models)
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers, **metadata)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    network, _ = create_network_from_weights(1.0, file, None, clip_model, unet)
    network.apply_to(clip_model, unet)
    assert_close(outputs(), theirs, base)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_a_folder_of_peft_is_read_as_it_was_trained(tmp_path, unet, outputs, use_dora):
    before = outputs()[0]
    wrapped = peft.get_peft_model(
        copy.deepcopy(unet), peft.LoraConfig(r=4, lora_alpha=3, target_modules=UNET_TARGETS, use_dora=use_dora)
    )
    randomize_adapter(wrapped)
    theirs = outputs(wrapped)[0]
    wrapped.save_pretrained(tmp_path)
    network, _ = create_network_from_weights(1.0, tmp_path / "adapter_model.safetensors", None, [], unet)
    network.apply_to([], unet)
    assert_close(outputs()[:1], [theirs], [before])


@pytest.mark.parametrize("network_args", [{}, {"conv_dim": "3", "use_dora": "True"}], ids=["lora", "dora"])
def test_diffusers_reads_what_is_written_in_its_form(
    tmp_path, clip_model, unet, outputs, pipeline, randomize, network_args
):
    base = outputs()
    network = randomize(create_network(1.0, 4, 3, None, clip_model, unet, **network_args))
    for layer in network.layers():
        if layer.dora_scale is not None:
            layer.dora_scale.data.mul_(torch.rand_like(layer.dora_scale) + 0.5)
    save_file(peft_form(network.state_dict(), "lora"), tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    theirs = outputs()
    pipeline.unload_lora_weights()
    network.apply_to(clip_model, unet)
    assert_close(outputs(), theirs, base)


def test_there_and_back_names_every_layer_as_before(tmp_path, text_encoder, unet, randomize):
    """A scale of 2 is exact in floats: the weights are the same, too."""
    state = randomize(create_network(1.0, 4, 8, None, text_encoder, unet, conv_dim="2", conv_alpha="4")).state_dict()
    written = peft_form(state, "lora")
    assert not any("lora_unet" in key or "lora_te" in key for key in written)
    save_file(written, tmp_path / "theirs.safetensors")
    again = load_adapter(tmp_path / "theirs.safetensors")
    assert set(again) == {key for key in state if not key.endswith("alpha")}
    for key, tensor in again.items():
        assert torch.equal(tensor, state[key] * (2 if "lora_up" in key else 1))


# names that releases of Diffusers wrote, one tensor each
OLDER = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
    ),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.lora_up.weight"
    ),
    "unet.down_blocks.0.resnets.0.conv1.lora.down.weight": "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_v_lora.up.weight": (
        "lora_te_text_model_encoder_layers_0_self_attn_v_proj.lora_up.weight"
    ),
    "base_model.model.encoder.layers.1.mlp.fc1.lora_A.default.weight": (
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight"
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), OLDER.items())
def test_older_names(tmp_path, theirs, ours):
    assert list(own_form({theirs: torch.ones(2, 3)}, {}, tmp_path / "x.safetensors")) == [ours]


def test_two_text_encoders_are_numbered(tmp_path):
    keys = [f"{part}.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" for part in ("text_encoder", "text_encoder_2")]
    found = own_form(dict.fromkeys(keys, torch.ones(2, 3)), {}, tmp_path / "x.safetensors")
    assert [key.partition("_text_model")[0] for key in found] == ["lora_te1", "lora_te2"]


def test_a_damaged_configuration_is_named(tmp_path):
    save_file({"base_model.model.conv_in.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json is not the JSON"):
        load_adapter(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("key", ["transformer.blocks.0.lora_A.weight", "lora_unet_x.hada_w1_a"])
def test_files_of_others_are_left_as_they_are(tmp_path, key):
    assert list(own_form({key: torch.ones(2, 3)}, {}, tmp_path / "x.safetensors")) == [key]
