"""If these fail, frozen parts of a model are saved in the rounded precision of the computation."""

import torch
from safetensors.torch import load_file

from library.models.family import LoadSettings
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import load_family
from tests.tiny_models import make_tiny, write_folder


def test_what_was_kept_is_saved_and_the_model_computes_with_what_was_placed(tmp_path):
    tiny = make_tiny(False)
    half = torch.bfloat16
    settings = LoadSettings(dtypes={"text_encoder": half, "vae": half}, kept_exact=frozenset({"vae", "text_encoder"}))
    family = load_family(ModelOptions(str(write_folder(tiny, tmp_path / "model"))), settings=settings)
    assert family.vae.encoder.conv_in.weight.dtype == half
    assert family.encode_prompts(["a cat"]).hidden_states.dtype == half
    with torch.no_grad():
        family.unet.conv_in.weight += 1
    family.save(tmp_path / "saved", format="diffusers_safetensors", dtype=torch.float32, metadata={})
    for part, module in (("vae", tiny.vae), ("text_encoder", tiny.text_encoder)):
        (file,) = (tmp_path / "saved" / part).glob("*.safetensors")
        saved = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
        for name, tensor in module.state_dict().items():
            assert torch.equal(saved[name.removeprefix("text_model.")], tensor)
    saved = load_file(tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(saved["conv_in.weight"], tiny.unet.conv_in.weight + 1)


def test_prompts_of_images_are_padded_where_captions_are_not(tmp_path):
    model = ModelOptions(str(write_folder(make_tiny(False), tmp_path / "model")))
    family = load_family(model, PromptOptions(no_token_padding=True))
    with torch.no_grad():
        assert family.encode_prompts(["a cat", "a"]).hidden_states.shape[1] == 4  # start, "a", "cat", end
        assert family.encode_prompts(["a cat", "a"], weighted=True).hidden_states.shape[1] == 77
