"""If this fails, training is not the mathematics that the options promise.

The same few steps are done by a loop written here from Diffusers' and PyTorch's parts: its own LoRA, loss, weights,
clipping and accumulation. It shares with the program the images' pixels, the order of the plan and the keys of the
random numbers, which other tests look at.
"""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.nn import functional

from library.data.caches.latent_cache import latent_seed
from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.randomness import derive_seed
from tests.end_to_end.runs import BASE, IMAGES, REGULARISATION, train

SEED, RANK, ALPHA, CLIP, GAMMA, OFFSET, PRIOR, PERTURBATION = 7, 4, 2.0, 0.005, 5.0, 0.1, 0.5, 0.2
RATES = {"lora_te": 5e-4, "lora_unet": 1e-3}
DATASET = f"""
[[datasets]]
resolution = 64
batch_size = 2
[[datasets.subsets]]
image_dir = '{IMAGES}'
caption_extension = ".txt"
[[datasets.subsets]]
image_dir = '{REGULARISATION}'
caption_extension = ".txt"
is_reg = true
"""


def attach_lora(pipe, weights):
    """Hooks that add alpha / rank * up(down(x)) to the layers that the names of the weights mean."""
    layers = {}
    for prefix, model in (("lora_unet_", pipe.unet), ("lora_te_text_model_", pipe.text_encoder)):
        for path, module in model.named_modules():
            layers[prefix + path.removeprefix("text_model.").replace(".", "_")] = module
    params = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in weights.items() if "alpha" not in name}
    for name in {name.split(".")[0] for name in params}:
        down, up = params[f"{name}.lora_down.weight"], params[f"{name}.lora_up.weight"]
        apply = functional.conv2d if down.dim() == 4 else functional.linear

        def hook(module, inputs, output, down=down, up=up, apply=apply):
            return output + ALPHA / RANK * apply(apply(inputs[0], down), up)

        layers[name].register_forward_hook(hook)
    return params


def loss_of(pipe, data, micro_batch):
    (dataset,) = data.datasets
    indices = [int(dataset.items[item]) for item in micro_batch.item_indices]
    records = [dataset.records[index] for index in indices]
    latents = []
    for index in indices:
        key = dataset.latent_key(index, False)
        posterior = pipe.vae.encode(torch.from_numpy(load_image(key).pixels)[None]).latent_dist
        noise = torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(latent_seed(key)))
        latents.append((posterior.mean + posterior.std * noise) * pipe.vae.config.scaling_factor)
    latents = torch.cat(latents).detach()
    generator = torch.Generator().manual_seed(derive_seed("noise", SEED, micro_batch.epoch, micro_batch.index))
    timesteps = torch.randint(0, 1000, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noise = noise + OFFSET * torch.randn((len(latents), 4, 1, 1), generator=generator)
    ids = pipe.tokenizer([record.caption for record in records], padding="max_length", return_tensors="pt").input_ids
    added = noise + PERTURBATION * torch.randn(latents.shape, generator=generator)  # and `noise` is to be found
    noisy = pipe.scheduler.add_noise(latents, added, timesteps)
    prediction = pipe.unet(noisy, timesteps, encoder_hidden_states=pipe.text_encoder(ids)[0]).sample
    alphas = pipe.scheduler.alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    weights = torch.tensor([PRIOR if record.is_reg else 1.0 for record in records])
    weights = weights * torch.minimum(snr, torch.tensor(GAMMA)) / snr
    return (((prediction - noise) ** 2).mean(dim=(1, 2, 3)) * weights).mean()


def plain_training(data, initial, num_steps, accumulation):
    pipe = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False)
    params = attach_lora(pipe, initial)
    groups = [
        {"params": [param for name, param in params.items() if name.startswith(part)], "lr": rate}
        for part, rate in RATES.items()
    ]
    optimizer = torch.optim.AdamW(groups)
    plan = data.batches_of_epoch(SEED, 0)
    norms = []
    for step in range(num_steps):
        batches = plan[step * accumulation : (step + 1) * accumulation]
        optimizer.zero_grad()
        (sum(loss_of(pipe, data, batch) for batch in batches) / len(batches)).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), CLIP)))
        optimizer.step()
    assert max(norms) > CLIP  # clipping had something to do
    return {name: param.detach() for name, param in params.items()}


@pytest.mark.parametrize(("accumulation", "checkpointing"), [(1, False), (2, True)])
def test_weights_after_three_steps_equal_those_of_a_plain_loop(tmp_path, accumulation, checkpointing):
    (tmp_path / "data.toml").write_text(DATASET)
    options = {
        "train_data_dir": None,
        "resolution": None,
        "enable_bucket": None,
        "dataset_config": tmp_path / "data.toml",
        "network_dim": RANK,
        "network_alpha": ALPHA,
        "noise_offset": OFFSET,
        "ip_noise_gamma": PERTURBATION,
        "min_snr_gamma": GAMMA,
        "prior_loss_weight": PRIOR,
        "max_grad_norm": CLIP,
        "seed": SEED,
    }
    initial = train(None, tmp_path / "initial", **options, learning_rate=0, max_train_steps=1)
    found = train(
        None,
        tmp_path / "out",
        **options,
        unet_lr=RATES["lora_unet"],
        text_encoder_lr=RATES["lora_te"],
        max_train_steps=3,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
        cache_latents=checkpointing,
    )
    data = load_training_data(DatasetOptions(dataset_config=str(tmp_path / "data.toml")))
    expected = plain_training(data, initial, 3, accumulation)
    assert {name for name in found if "alpha" not in name} == set(expected)
    changes = torch.cat([(expected[name] - initial[name]).flatten() for name in expected])
    errors = torch.cat([(expected[name] - found[name]).flatten() for name in expected])
    assert changes.abs().max() > 1e-3 and changes.abs().mean() > 1e-4
    # Adam turns rounding into steps where gradients are nothing but rounding: few may be off, by little
    assert errors.abs().mean() < 1e-7 and (errors.abs() > 1e-5).float().mean() < 1e-3, (
        errors.abs().mean(), errors.abs().max(),
    )  # fmt: skip
