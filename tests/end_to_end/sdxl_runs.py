"""Runs on the tiny Stable Diffusion XL model, and the loss that Diffusers' parts give."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from library.data.batches.plan import TrainingData
from library.data.caches.latent_cache import latent_seed
from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.randomness import derive_seed
from library.data.records import ImageRecord, MicroBatch
from tests.end_to_end.runs import arguments

SEED = 7
USUAL = {"bucket_reso_steps": 32, "logging_dir": None, "train_batch_size": 2, "save_model_as": "safetensors"}


def run(script: str, base: Path, data: Path, output: Path, **options) -> Path:
    """The last save of a run in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    given = {"pretrained_model_name_or_path": base, **USUAL, **options}
    importlib.import_module(script).train(arguments(data, output, **given))
    return output / "run.safetensors"


def load_images(images: Path) -> TrainingData:
    """The images of `run`, to be gone through as its options say."""
    return load_training_data(
        DatasetOptions(
            train_data_dir=str(images), resolution=(64, 64), enable_bucket=True, min_bucket_reso=32,
            max_bucket_reso=128, bucket_reso_steps=32, train_batch_size=2, caption_extension=".txt",
        )
    )  # fmt: skip


def conditions_of(
    pipe: StableDiffusionXLPipeline, records: Sequence[ImageRecord], latents: torch.Tensor
) -> dict[str, Any]:
    """What the U-Net takes beside latents (B, C, h, w) and timesteps, from captions and the sizes of the files."""
    height_of_bucket, width_of_bucket = latents.shape[2] * 8, latents.shape[3] * 8
    ids = []
    for record in records:
        with Image.open(record.path) as image:
            width, height = image.size
        scale = max(width_of_bucket / width, height_of_bucket / height)
        crop = tuple(
            (int(side * scale + 0.5) - bucket) // 2
            for side, bucket in ((height, height_of_bucket), (width, width_of_bucket))
        )
        target = (height_of_bucket, width_of_bucket)
        # the inpaint pipeline's own would also be given those of a negative prompt
        ids.append(StableDiffusionXLPipeline._get_add_time_ids(pipe, (height, width), crop, target, torch.float32, 48))
    states, _, pooled, _ = pipe.encode_prompt([record.caption for record in records], do_classifier_free_guidance=False)
    added = {"text_embeds": pooled, "time_ids": torch.cat(ids)}
    return {"encoder_hidden_states": states, "added_cond_kwargs": added}


def loss_of(pipe: StableDiffusionXLPipeline, data: TrainingData, micro_batch: MicroBatch) -> torch.Tensor:
    """The loss of a micro-batch of `run`, from the pipeline's parts and the files of the images alone."""
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
    noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
    prediction = pipe.unet(noisy, timesteps, **conditions_of(pipe, records, latents)).sample
    return ((prediction - noise) ** 2).mean()
