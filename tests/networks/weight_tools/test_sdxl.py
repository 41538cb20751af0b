"""If this fails, the tools change other weights of a Stable Diffusion XL model than the LoRA is for."""

import torch
from safetensors.torch import load_file, save_file

from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.ldm_unet import module_names
from networks.extract_lora_from_models import JOB as EXTRACT
from networks.lora import create_network
from networks.sdxl_merge_lora import JOB as MERGE
from tests.end_to_end.runs import BASE
from tests.networks.weight_tools.conftest import updates
from tests.tiny_models import make_tiny_sdxl, write_sdxl_folder

# of the published U-Net: Diffusers' names, those that published LoRAs have, and the factor of the block below
NAMES = {
    "down_blocks_0_downsamplers_0_conv": ("input_blocks_3_0_op", 5),
    "down_blocks_1_attentions_0_proj_in": ("input_blocks_4_1_proj_in", 6),
    "down_blocks_2_attentions_1_transformer_blocks_9_attn2_to_k": (
        "input_blocks_8_1_transformer_blocks_9_attn2_to_k",
        10,
    ),
    "mid_block_attentions_0_proj_out": ("middle_block_1_proj_out", 11),
    "mid_block_resnets_1_conv1": ("middle_block_2_in_layers_2", 11),
    "up_blocks_0_attentions_2_proj_in": ("output_blocks_2_1_proj_in", 14),
    "up_blocks_1_upsamplers_0_conv": ("output_blocks_5_2_conv", 17),
    "up_blocks_2_resnets_0_conv_shortcut": ("output_blocks_6_0_skip_connection", 18),
}


def test_layers_with_diffusers_names_are_those_of_published_files(run, tmp_path):
    """In blocks, and where two files have the same layer under different names."""
    generator = torch.Generator().manual_seed(1)
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    names = {text: (text, 1), **{f"lora_unet_{old}": (f"lora_unet_{new}", of) for old, (new, of) in NAMES.items()}}
    halves = {old: [torch.randn(shape, generator=generator) for shape in ((2, 6), (5, 2))] for old in names}
    files = [tmp_path / "diffusers.safetensors", tmp_path / "published.safetensors"]
    for index, file in enumerate(files):
        named = {(old, new)[index]: halves[old] for old, (new, _) in names.items()}
        tensors = {f"{name}.lora_down.weight": down for name, (down, _) in named.items()}
        save_file(tensors | {f"{name}.lora_up.weight": up for name, (_, up) in named.items()}, file)
    numbers, zeros, merged = ",".join(map(str, range(1, 21))), ",".join(["0"] * 20), tmp_path / "merged.safetensors"
    for weights in ((numbers, zeros), (zeros, numbers)):
        ended = run(MERGE, "--models", *files, "--lbws", *weights, "--concat", "--save_to", merged)
        assert ended.status == 0, ended.error
        found = updates(load_file(merged))
        assert found.keys() == {new for new, _ in names.values()}
        for old, (new, factor) in names.items():
            down, up = halves[old]
            torch.testing.assert_close(found[new].float(), factor * up @ down, atol=1e-4, rtol=1e-5)


def test_what_is_merged_is_extracted_again(run, tmp_path):
    """Of U-Net and both text encoders; the base as a folder, the merged model as a single file."""
    tiny, base, lora = make_tiny_sdxl(), tmp_path / "base", tmp_path / "lora.safetensors"
    write_sdxl_folder(tiny, base)
    torch.manual_seed(3)
    network = create_network(1.0, 2, 2, None, [tiny.text_encoder, tiny.text_encoder_2], tiny.unet)
    with torch.no_grad():
        for layer in network.layers():
            layer.lora_up.weight.normal_(std=0.1)
    network.save_weights(lora, None, {})
    merged, found = tmp_path / "merged.safetensors", tmp_path / "found.safetensors"
    ended = run(MERGE, "--sd_model", base, "--models", lora, "--ratios", 0.5, "--save_to", merged)
    assert ended.status == 0, ended.error
    words = ("--dim", 2, "--clamp_quantile", 1, "--sdxl", "--save_to", found)
    ended = run(EXTRACT, "--model_org", base, "--model_tuned", merged, *words)
    assert ended.status == 0, ended.error
    table = module_names(tiny.unet.config)
    own = {f"lora_unet_{path}".replace(".", "_"): path for path, _ in tiny.unet.named_modules()}
    expected, extracted = updates(load_file(lora)), updates(load_file(found))
    for name in [name for name in expected if name in own]:  # Diffusers' names; files of the family have others
        renamed = rename_key(f"{own[name]}.weight", table).removesuffix(".weight")
        expected[f"lora_unet_{renamed}".replace(".", "_")] = expected.pop(name)
    assert extracted.keys() == expected.keys()
    assert {name.split("_", 2)[1] for name in expected} == {"unet", "te1", "te2"}
    for name, update in expected.items():
        torch.testing.assert_close(extracted[name], 0.5 * update, atol=1e-4, rtol=0)
    refused = run(MERGE, "--sd_model", BASE, "--models", found, "--save_to", tmp_path / "other.safetensors")
    said = f"--models {found} was made for Stable Diffusion XL, but {BASE} is Stable Diffusion 1.x"
    assert refused.status == 2 and said in refused.error and not (tmp_path / "other.safetensors").exists()
