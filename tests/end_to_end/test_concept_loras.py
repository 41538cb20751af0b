"""If these fail, a concept LoRA is not what the formulas of erasing and sliders say, or cannot be trusted to a run.

The reference is Diffusers: its pipelines encode the prompts, its DDIM scheduler denoises, its reader attaches the LoRA,
and one loop written here trains it. It shares with the program the keys of the random numbers.
"""

from __future__ import annotations

import json
import random
import re
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import sdxl_train_leco
import train_leco
from library.cli.errors import UserError
from library.data.randomness import derive_seed
from library.methods.concepts.method import ConceptTraining
from library.methods.concepts.options import ConceptOptions
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.text.tokenizer import SHIPPED_VOCABULARY
from library.training.script import check_command
from tests.end_to_end.concept_runs import DENOISING, ENTRIES, GUIDANCE, RATE, SEED, STEPS, argv_of, run
from tests.end_to_end.launches import TWO_PROCESSES, launch
from tests.end_to_end.runs import BASE, assert_same, logged, start_command
from tests.tiny_inpainting_models import write_inpainting_base
from tests.tiny_models import make_sdxl_pipeline, make_tiny, make_tiny_sdxl, write_folder

GAMMA = 5.0
# what they stand for: target, positive, neutral, unconditional, factor, multiplier, weight, batch size
BY_HAND = [
    ("a frog", "frog", "a cat", "blurry", -1.5, 1.0, 1.0, 2),
    ("a ring", "big", "a ring", "small", 1.0, 1.5, 0.5, 1),
    ("a ring", "big", "a ring", "small", -1.0, -1.5, 0.5, 1),
]


def drawn(index: int) -> tuple[tuple, int]:
    """The entry of a micro-batch of the first epoch, and how many timesteps are denoised."""
    rng = random.Random(derive_seed("concept", SEED, 0, index))
    return BY_HAND[rng.randrange(3)], rng.randrange(1, DENOISING)


class PlainLoop:
    """Diffusers' parts: `encode` gives what `unet` takes beside latents and timesteps, for a batch of prompts."""

    def __init__(self, pipe, encode, prediction_type: str):
        self.unet, self.encode = pipe.unet, encode
        self.scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            prediction_type=prediction_type, timestep_spacing="trailing",
        )  # fmt: skip
        self.layers = [module for module in pipe.unet.modules() if hasattr(module, "set_scale")]
        self.side = 64 // pipe.vae_scale_factor
        self.is_v = prediction_type == "v_prediction"

    def predict(self, latents, timestep, prompts):
        return self.unet(latents, timestep, **self.encode(prompts)).sample

    def set_multiplier(self, multiplier: float) -> None:
        for layer in self.layers:
            layer.set_scale("default_0", multiplier)

    def loss_of(self, index: int) -> torch.Tensor:
        (target, positive, neutral, unconditional, factor, multiplier, weight, size), num_denoised = drawn(index)
        generator = torch.Generator().manual_seed(derive_seed("noise", SEED, 0, index))
        latents = torch.randn(size, 4, self.side, self.side, generator=generator)
        with torch.no_grad():
            self.set_multiplier(multiplier)
            self.scheduler.set_timesteps(DENOISING)
            for timestep in self.scheduler.timesteps[:num_denoised]:
                both = [self.predict(latents, timestep, [prompt] * size) for prompt in (unconditional, target)]
                guided = both[0] + GUIDANCE * (both[1] - both[0])
                latents = self.scheduler.step(guided, timestep, latents).prev_sample
            timestep = torch.tensor(list(range(999, -1, -1))[1000 * num_denoised // DENOISING])
            self.set_multiplier(0.0)
            wanted = self.predict(latents, timestep, [neutral] * size)
            wanted += factor * self.predict(latents, timestep, [positive] * size)
            wanted -= factor * self.predict(latents, timestep, [unconditional] * size)
        self.set_multiplier(multiplier)
        found = self.predict(latents, timestep, [target] * size)
        alpha = self.scheduler.alphas_cumprod[timestep]
        snr = alpha / (1 - alpha)
        min_snr = torch.clamp(snr, max=GAMMA) / (snr + 1 if self.is_v else snr)
        return weight * min_snr * (found - wanted).square().mean()

    def train(self, params) -> list[float]:
        optimizer, losses = torch.optim.AdamW(params, lr=RATE), []
        for index in range(STEPS):
            optimizer.zero_grad()
            loss = self.loss_of(index)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses


def sd_loop(pipe, prediction_type: str = "epsilon") -> PlainLoop:
    def encode(prompts):
        states, _ = pipe.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states}

    return PlainLoop(pipe, encode, prediction_type)


class InpaintingLoop(PlainLoop):
    """Everything is to be drawn: the mask is 1, and of the image grey is left, as its VAE encodes it."""

    def predict(self, latents, timestep, prompts):
        if not hasattr(self, "grey"):
            posterior = self.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
            self.grey = (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor
        ones, grey = latents.new_ones(len(latents), 1, self.side, self.side), self.grey.expand_as(latents)
        return super().predict(torch.cat([latents, ones, grey], dim=1), timestep, prompts)


def inpainting_loop(pipe) -> PlainLoop:
    plain = sd_loop(pipe)
    loop = InpaintingLoop(pipe, plain.encode, "epsilon")
    loop.vae = pipe.vae
    return loop


def sdxl_loop(pipe) -> PlainLoop:
    def encode(prompts):
        states, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
        ids = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 48)
        added = {"text_embeds": pooled, "time_ids": ids.expand(len(prompts), -1)}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}

    return PlainLoop(pipe, encode, "epsilon")


def v_pipeline() -> StableDiffusionPipeline:
    model = make_tiny(True)
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED_VOCABULARY, pad_token="!", model_max_length=77)
    parts = {"vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": tokenizer, "unet": model.unet}
    return StableDiffusionPipeline(
        **parts, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@pytest.fixture(params=["sd", "sd 2 of v", "sdxl", "inpainting"])
def case(request, tmp_path_factory, sdxl_base):
    """Script, base model, what makes its pipeline, what makes the loop of a pipeline, options."""
    if request.param == "sd":
        return train_leco, BASE, lambda: StableDiffusionPipeline.from_pretrained(BASE), sd_loop, {}
    if request.param == "inpainting":
        base = write_inpainting_base(tmp_path_factory.mktemp("inpainting") / "base")
        return train_leco, base, lambda: StableDiffusionInpaintPipeline.from_pretrained(base), inpainting_loop, {}
    if request.param == "sdxl":
        options = {"gradient_checkpointing": True}
        return sdxl_train_leco, sdxl_base, lambda: make_sdxl_pipeline(make_tiny_sdxl()), sdxl_loop, options
    base = write_folder(make_tiny(True), tmp_path_factory.mktemp("v") / "base", prediction_type="v_prediction")
    return train_leco, base, v_pipeline, lambda pipe: sd_loop(pipe, "v_prediction"), {"v_parameterization": True}


def adapters_of(pipe, file: Path) -> dict[str, torch.nn.Parameter]:
    pipe.to(torch.float32)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.load_lora_weights(str(file))
    return {name: param for name, param in pipe.unet.named_parameters() if "lora_" in name}


def test_losses_and_weights_are_those_of_a_loop_of_diffusers_parts(case, tmp_path):
    script, base, make_pipeline, loop_of, options = case
    options = {**options, "network_dim": 4, "network_alpha": 2, "min_snr_gamma": GAMMA}
    named = run(tmp_path / "named", base, script, learning_rate=0, max_train_steps=1, **options)
    generator = torch.Generator().manual_seed(1)
    start = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator) if "lora_up" in name else tensor
        for name, tensor in named.items()
    }
    save_file(start, tmp_path / "start.safetensors")  # a network that matters from the first step on
    found = run(tmp_path / "out", base, script, network_weights=tmp_path / "start.safetensors", **options)
    pipe = make_pipeline()
    params = adapters_of(pipe, tmp_path / "start.safetensors")
    assert len(params) == len(found) * 2 // 3
    before = {name: param.detach().clone() for name, param in params.items()}
    for param in params.values():
        param.requires_grad_(True)
    losses = loop_of(pipe).train(list(params.values()))
    assert {drawn(index)[0] for index in range(STEPS)} == set(BY_HAND)
    assert [loss for _, loss in logged(tmp_path / "out")] == pytest.approx(losses, rel=1e-5, abs=1e-6)
    ours = adapters_of(make_pipeline(), tmp_path / "out" / "run.safetensors")
    changes = torch.cat([(params[name] - before[name]).flatten() for name in params]).abs()
    errors = torch.cat([(params[name] - ours[name]).flatten() for name in params]).abs()
    assert changes.max() > 1e-3 and changes.mean() > 1e-4
    # Adam turns rounding into steps where gradients are nothing but rounding: few may be off, by little
    assert errors.mean() < 1e-6 and (errors > 1e-5).float().mean() < 1e-3, (errors.mean(), errors.max())


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    """And sample images, which show the network at multiplier 1, change nothing."""
    (tmp_path / "samples.txt").write_text("a frog --w 64 --h 64 --s 2\n")
    options = {
        "network_dropout": 0.1, "ema": True, "gradient_accumulation_steps": 2, "max_train_steps": 4, "save_state": True,
        "save_every_n_steps": 2,
    }  # fmt: skip
    samples = {"sample_prompts": tmp_path / "samples.txt", "sample_every_n_steps": 1}
    whole = run(tmp_path / "whole", BASE, **options, **samples)
    state = tmp_path / "whole" / "run-step00000002-state"
    assert_same(whole, run(tmp_path / "resumed", BASE, **options, resume=state))
    losses = [dict(logged(tmp_path / name)) for name in ("whole", "resumed")]
    assert losses[1] == {step: loss for step, loss in losses[0].items() if step > 2} and len(losses[1]) == 2
    with safe_open(tmp_path / "whole" / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["ss_prompts"])[1]["multiplier"] == 1.5 and metadata["ss_num_train_images"] == "0"
    assert metadata["modelspec.resolution"] == "64x64" and metadata["ss_max_denoising_steps"] == str(DENOISING)


def test_a_bad_step_is_named_and_changes_nothing(tmp_path, caplog):
    """The weight of a word of one entry is infinite in 32 bits."""
    bad = {"target": f"a (newt:{10**39})", "resolution": 64}
    draws = (  # of the four entries that slider and words stand for, the last in steps 2 and 4 alone
        (seed, [random.Random(derive_seed("concept", seed, 0, index)).randrange(4) == 3 for index in range(5)])
        for seed in range(1000)
    )
    seed = next(seed for seed, is_bad in draws if is_bad == [False, True, False, True, False])
    prompts = tmp_path / "bad.yaml"
    prompts.write_text(json.dumps([*ENTRIES, bad]))
    options = {"prompts_file": prompts, "weighted_captions": True, "max_train_steps": 5, "save_every_n_steps": 1}
    run(tmp_path / "out", BASE, **options, seed=seed, max_denoising_steps=2)
    lines = [record.getMessage() for record in caplog.records if "not applied" in record.getMessage()]
    steps = [int(re.search(r"step (\d+)", line)[1]) for line in lines]
    assert steps == [2, 4]
    assert all("the loss is not finite" in line and "newt" in line for line in lines)
    assert [step for step, _ in logged(tmp_path / "out")] == [step for step in (1, 3, 5)]
    saved = [load_file(tmp_path / "out" / f"run-step{step:08d}.safetensors") for step in range(1, 6)]
    for step, (before, after) in enumerate(pairwise(saved), 2):
        assert all(torch.equal(before[name], after[name]) for name in before) == (step in steps), step


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
def test_a_signal_saves_weights_and_a_state_to_go_on_from(tmp_path):
    options = {"max_train_steps": 24, "save_every_n_steps": 3, "max_denoising_steps": 2}
    process = start_command(argv_of(tmp_path / "out", BASE, **options), "train_leco.py")
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "run-step00000003.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in said, said[-2000:]
    (state,) = (tmp_path / "out").glob("run-step*-state")
    assert state.with_name(f"{state.name.removesuffix('-state')}.safetensors").exists()
    assert "To resume: " in said and int(state.name[8:16]) < 24
    whole = run(tmp_path / "whole", BASE, **options)
    assert_same(run(tmp_path / "out", BASE, **options, resume=state), whole)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_twice_the_accumulation(tmp_path):
    one = run(tmp_path / "one", BASE, gradient_accumulation_steps=2)
    assert "processes 2" in launch(argv_of(tmp_path / "two", BASE), *TWO_PROCESSES, script="train_leco.py")
    two = load_file(tmp_path / "two" / "run.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_up" in name) > 1e-3


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("networks.lora", ()), ("networks.oft", ()), ("lycoris.kohya", ("algo=lokr", "factor=2"))],
)
def test_a_network_that_is_off_is_the_model_alone(module, arguments):
    """Else the target would move with what is trained."""
    options = ConceptOptions(network_module=module, network_args=arguments)
    family = load_family(ModelOptions(str(BASE)))
    generator, timesteps = torch.Generator().manual_seed(1), torch.tensor([500])
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        conditioning = family.encode_prompts(["a frog"])
        alone = family.predict(latents, timesteps, conditioning)
        method = ConceptTraining(options)
        method.attach(family, seed=1, default_learning_rate=1e-3, checkpointing=False)
        for group in method.param_groups():
            for param in group.params:
                param.add_(0.1 * torch.randn(param.shape, generator=generator))
        method.set_multiplier(1.0)
        assert not torch.allclose(family.predict(latents, timesteps, conditioning), alone, atol=1e-3)
        method.set_multiplier(0.0)
        torch.testing.assert_close(family.predict(latents, timesteps, conditioning), alone, rtol=0, atol=1e-6)


def test_mistakes_are_told_before_a_model_is_loaded(tmp_path):
    argv = argv_of(tmp_path / "out", BASE, sample_prompts=tmp_path / "none.txt", sample_every_n_steps=1)
    (tmp_path / "prompts.yaml").write_text("- {positive: frog, tragte: cat}\n")
    with pytest.raises(UserError) as caught:
        check_command(train_leco.SCRIPT, argv)
    for part in ("none.txt does not exist", "unknown key tragte", "did you mean target?"):
        assert part in str(caught.value), str(caught.value)
    for wrong, said in (
        ({"prompts_file": None}, "--prompts_file"),
        ({"network_train_text_encoder_only": True}, "leaves the U-Net untrained"),
        ({"max_denoising_steps": 1}, "2 or more"),
        ({"train_data_dir": tmp_path}, "train_data_dir"),
    ):
        with pytest.raises(UserError, match=said):
            check_command(train_leco.SCRIPT, argv_of(tmp_path / "out", BASE, **wrong))
