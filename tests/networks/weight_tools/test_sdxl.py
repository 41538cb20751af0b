"""If this fails, the tools change other weights of a Stable Diffusion XL model than the LoRA is for."""

import torch
from safetensors.torch import load_file

from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.ldm_unet import module_names
from networks.extract_lora_from_models import JOB as EXTRACT
from networks.lora import create_network
from networks.sdxl_merge_lora import JOB as MERGE
from tests.end_to_end.runs import BASE
from tests.networks.weight_tools.conftest import updates
from tests.tiny_models import make_tiny_sdxl, write_sdxl_folder


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
