"""If these fail, training of Stable Diffusion XL is another one than its pipeline's parts make, or its files are.

The reference is Diffusers: its pipeline encodes the prompts and makes the embeddings of sizes, its reader attaches the
adapter, and its parts are trained in a loop written here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

import sdxl_train_network
from library.cli.errors import UserError
from library.data.records import Framing
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import load_family
from tests.end_to_end.runs import arguments, assert_same
from tests.end_to_end.sdxl_runs import SEED, load_images, loss_of, run
from tests.end_to_end.word_runs import WORD, copy_with_word
from tests.tiny_models import make_sdxl_pipeline, make_tiny_sdxl

RANK, ALPHA = 4, 2.0
RATES = {"text_encoder.": 5e-4, "text_encoder_2.": 2e-4, "unet.": 1e-3}


def adapters_of(pipe) -> dict[str, torch.nn.Parameter]:
    return {
        f"{part}.{name}": param
        for part in ("text_encoder", "text_encoder_2", "unet")
        for name, param in getattr(pipe, part).named_parameters()
        if "lora_" in name
    }


def pipeline_with(adapter: Path):
    from diffusers import DDPMScheduler

    pipe = make_sdxl_pipeline(make_tiny_sdxl())
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)  # whose `add_noise` takes any timesteps
    pipe.load_lora_weights(str(adapter))
    return pipe


def test_a_lora_after_three_steps_is_that_of_a_loop_of_diffusers_parts(sdxl_base, sdxl_images, tmp_path):
    options = {"network_dim": RANK, "network_alpha": ALPHA, "seed": SEED}
    initial = run(
        "train_network", sdxl_base, sdxl_images, tmp_path / "0", **options, learning_rate=0, max_train_steps=1
    )
    unet, te1, te2 = RATES["unet."], RATES["text_encoder."], RATES["text_encoder_2."]
    found = run(
        "train_network", sdxl_base, sdxl_images, tmp_path / "1", **options, max_train_steps=3, unet_lr=unet,
        learning_rate_te1=te1, learning_rate_te2=te2,
    )  # fmt: skip
    pipe = pipeline_with(initial)
    params = adapters_of(pipe)
    start = {name: param.detach().clone() for name, param in params.items()}
    for param in params.values():
        param.requires_grad_(True)
    groups = [
        {"params": [each for name, each in params.items() if name.startswith(part)], "lr": rate}
        for part, rate in RATES.items()
    ]
    optimizer = torch.optim.AdamW(groups)
    data = load_images(sdxl_images)
    for batch in data.batches_of_epoch(SEED, 0)[:3]:
        optimizer.zero_grad()
        loss_of(pipe, data, batch).backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
    ours = adapters_of(pipeline_with(found))
    assert ours.keys() == params.keys() and len(load_file(found)) == 3 * len(params) // 2
    changes = torch.cat([(params[name] - start[name]).flatten() for name in params])
    errors = torch.cat([(params[name] - ours[name]).flatten() for name in params])
    assert changes.abs().max() > 1e-3 and changes.abs().mean() > 1e-4
    # Adam turns rounding into steps where gradients are nothing but rounding: few may be off, by little
    assert errors.abs().mean() < 1e-7 and (errors.abs() > 1e-5).float().mean() < 1e-3


def test_prompts_and_predictions_are_those_of_the_pipeline(tiny_sdxl, sdxl_base):
    pipe, family = make_sdxl_pipeline(tiny_sdxl), load_family(ModelOptions(str(sdxl_base)))
    prompts = ["a cat on a mat", ""]
    framing = [Framing((120, 80), (5, 7), (64, 32)), Framing((64, 64), (0, 0), (64, 32))]
    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
        found = family.encode_prompts(prompts)
        own = torch.cat([found.hidden_state1, found.hidden_state2], dim=-1)
        torch.testing.assert_close(own, states, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.pool2, pooled, atol=1e-6, rtol=0)
        latents, timesteps = torch.randn(2, 4, 4, 8), torch.tensor([3, 900])
        ids = [
            pipe._get_add_time_ids((each.original[1], each.original[0]), (each.crop[1], each.crop[0]), (32, 64),
                                   torch.float32, 48)
            for each in framing
        ]  # fmt: skip
        added = {"text_embeds": pooled, "time_ids": torch.cat(ids)}
        expected = tiny_sdxl.unet(latents, timesteps, encoder_hidden_states=states, added_cond_kwargs=added).sample
        assert torch.equal(family.predict(latents, timesteps, found, framing), expected)


def test_long_captions_have_more_states_and_the_pooled_output_of_their_first_tokens(sdxl_base):
    family = load_family(ModelOptions(str(sdxl_base)), PromptOptions(max_token_length=150))
    with torch.no_grad():
        found = family.encode_prompts(["cat " * 100, "cat " * 75])
    assert found.hidden_state1.shape == (2, 152, 32) and found.hidden_state2.shape == (2, 152, 64)
    torch.testing.assert_close(found.pool2[0], found.pool2[1])
    torch.testing.assert_close(found.hidden_state2[0, :76], found.hidden_state2[1, :76])
    assert not torch.allclose(found.hidden_state2[0, 76:101], found.hidden_state2[1, 76:101])


def test_cached_outputs_and_latents_train_the_same_weights_in_other_processes_too(sdxl_base, sdxl_images, tmp_path):
    options = {"network_train_unet_only": True, "max_train_steps": 3, "flip_aug": True}
    plain = run("train_network", sdxl_base, sdxl_images, tmp_path / "plain", **options)
    cached = {**options, "cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
    first = run("train_network", sdxl_base, sdxl_images, tmp_path / "first", **cached, max_data_loader_n_workers=2)
    again = run("sdxl_train_network", sdxl_base, sdxl_images, tmp_path / "again", **cached)
    assert_same(load_file(first), load_file(again))
    with_caches = load_file(first)
    errors = torch.cat([(with_caches[name] - tensor).flatten() for name, tensor in load_file(plain).items()]).abs()
    assert errors.mean() < 1e-7 and errors.max() < 1e-4  # captions are encoded one by one, not batch by batch
    folder = sdxl_images / "2_shs fox"
    with np.load(folder / "fox_01_te_outputs.npz") as file:
        shapes = {name: file[name].shape for name in ("hidden_state1", "hidden_state2", "pool2")}
    assert shapes == {"hidden_state1": (77, 32), "hidden_state2": (77, 64), "pool2": (48,)}
    assert len(list(folder.glob("*_sdxl.npz"))) == 5 and not list(folder.glob("*_sd.npz"))


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("sdxl_train_network", {"network_dropout": 0.1, "network_args": "conv_dim=2", "text_encoder_lr": "1e-3"}),
        ("sdxl_train", {"train_text_encoder": True, "learning_rate_te2": 0, "learning_rate": 1e-4}),
        ("sdxl_train_textual_inversion", {"token_string": WORD, "num_vectors_per_token": 2, "learning_rate": 1e-2}),
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(sdxl_base, tmp_path, script, options):
    data = copy_with_word(tmp_path / "data", count=3)
    options = {**options, "save_every_n_steps": 2, "save_state": True, "gradient_checkpointing": True}
    whole = run(script, sdxl_base, data, tmp_path / "whole", **options, max_train_steps=4)
    state = tmp_path / "whole" / "run-step00000002-state"
    resumed = run(script, sdxl_base, data, tmp_path / "resumed", **options, max_train_steps=4, resume=state)
    assert_same(load_file(whole), load_file(resumed))


def test_a_trained_token_is_read_by_diffusers_for_each_encoder(sdxl_base, tmp_path):
    data = copy_with_word(tmp_path / "data", count=3)
    file = run(
        "train_textual_inversion", sdxl_base, data, tmp_path / "out", token_string=WORD, num_vectors_per_token=2,
        max_train_steps=2, learning_rate=1e-2, init_word="dog",
    )  # fmt: skip
    tensors, pipe = load_file(file), make_sdxl_pipeline(make_tiny_sdxl())
    assert {name: tuple(each.shape) for name, each in tensors.items()} == {"clip_l": (2, 32), "clip_g": (2, 64)}
    for key, encoder, tokenizer in (
        ("clip_l", pipe.text_encoder, pipe.tokenizer),
        ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
    ):
        table = encoder.get_input_embeddings().weight.detach()
        (dog,) = tokenizer("dog", add_special_tokens=False).input_ids
        moved = (tensors[key] - table[dog]).abs()
        assert 0 < moved.max() <= 2 * 1e-2 * 1.01  # two steps of Adam from the word it began with
        pipe.load_textual_inversion(tensors[key], token=WORD, text_encoder=encoder, tokenizer=tokenizer)


def test_a_fine_tuned_model_opens_in_diffusers_with_frozen_blocks_as_they_were(
    tiny_sdxl, sdxl_base, sdxl_images, tmp_path
):
    from diffusers import StableDiffusionXLPipeline

    rates = ",".join("0" if index in (0, 3) else "1e-4" for index in range(23))
    options = {"train_text_encoder": True, "learning_rate_te1": 1e-5, "learning_rate_te2": 0, "block_lr": rates}
    run(
        "sdxl_train",
        sdxl_base,
        sdxl_images,
        tmp_path,
        **options,
        save_model_as="diffusers_safetensors",
        max_train_steps=2,
    )
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "run", local_files_only=True)

    def changed(part: str) -> set[str]:
        old, new = getattr(tiny_sdxl, part).state_dict(), getattr(pipe, part).state_dict()
        return {name for name in old if not torch.equal(old[name], new[name].float())}

    unet = changed("unet")
    # block 0: embeddings; blocks 1, 2: the first convolution and block of the first level; block 3: its downsampling
    assert not any(name.startswith(("time_embedding", "add_embedding", "down_blocks.0.downsamplers")) for name in unet)
    assert {"conv_in.weight", "conv_out.weight", "mid_block.resnets.0.conv1.weight"} <= unet
    assert not changed("text_encoder_2") and not changed("vae")
    trained = changed("text_encoder")
    assert any("layers.1." in name for name in trained) and not any("layers.2." in name for name in trained)


def test_mistakes_are_named_before_anything_is_loaded(sdxl_base, sdxl_images, tmp_path):
    with pytest.raises(UserError, match="bucket_reso_steps 40 is not a multiple of 32"):
        run("train_network", sdxl_base, sdxl_images, tmp_path / "1", bucket_reso_steps=40)
    with pytest.raises(UserError, match="--xti works with Stable Diffusion 1.x and 2.x"):
        run("train_textual_inversion", sdxl_base, sdxl_images, tmp_path / "2", token_string=WORD, xti=True,
            use_object_template=True)  # fmt: skip
    for name in ("emb_params", "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"):
        save_file({name: torch.zeros(2, 768)}, tmp_path / f"{name[:3]}.safetensors")
    made_for = r"was made for Stable Diffusion 1.x( or Stable Diffusion 2.x)?, but \S*base is Stable Diffusion XL"
    for script, option, file in (
        ("train_network", "network_weights", "lor"),
        ("train_network", "base_weights", "lor"),
        ("train_textual_inversion", "weights", "emb"),
    ):
        given = {option: tmp_path / f"{file}.safetensors", "token_string": WORD if option == "weights" else None}
        with pytest.raises(UserError, match=f"--{option} .*{made_for}"):
            run(script, sdxl_base, sdxl_images, tmp_path / "3", **given)
    with pytest.raises(UserError, match="--block_lr has 2 learning rates, Stable Diffusion XL has 23 blocks"):
        run("sdxl_train", sdxl_base, sdxl_images, tmp_path / "3", block_lr="1e-4,0")
    from tests.end_to_end.runs import BASE

    with pytest.raises(UserError, match="--block_lr is for Stable Diffusion XL; this model is Stable Diffusion 1.x"):
        run("train_db", BASE, sdxl_images, tmp_path / "3", block_lr=",".join(["1e-4"] * 23))
    with pytest.raises(UserError, match="is Stable Diffusion 1.x and 2.x, which sdxl_train_network.py does not train"):
        AcceleratorState._reset_state(reset_partial_state=True)
        sdxl_train_network.train(arguments(sdxl_images, tmp_path / "4", pretrained_model_name_or_path=BASE))
