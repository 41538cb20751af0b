"""If this fails, each validation takes several times as long as it need, or timesteps measure each other's noise."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator

from library.data.config.options import CachingOptions
from library.data.records import Batch, LatentKey, MicroBatch, Placement
from library.diffusion.options import LossOptions, NoiseOptions
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.evaluation.validation import Validator
from library.training.inputs.latents import LatentProvider
from library.training.inputs.objective import Objective
from library.training.inputs.text_outputs import TextSource
from tests.tiny_models import make_tiny, write_folder


def test_images_and_captions_are_encoded_once_for_all_timesteps(tmp_path, monkeypatch):
    family = load_family(ModelOptions(str(write_folder(make_tiny(False), tmp_path))))
    accelerator, caching = Accelerator(), CachingOptions()
    latents, texts = LatentProvider(family, caching, accelerator), TextSource(family, caching, accelerator, False)
    objective = Objective(family, latents, texts, accelerator, NoiseOptions(), LossOptions())
    calls: Counter[str] = Counter()

    def counted(name):
        method = getattr(family, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return method(*args, **kwargs)

        return call

    names = ("encode_images", "encode_prompts", "predict")
    for name in names:
        monkeypatch.setattr(family, name, counted(name))
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    key = LatentKey("a.png", "a.png", (64, 64), 0, Placement((64, 64), (64, 64), (0, 0)), False)
    batch = Batch(
        micro_batch=MicroBatch(0, 0, 0, (0,), 0), captions=["a cat"], latent_keys=[key], loss_weights=torch.ones(1),
        pixels=torch.from_numpy(pixels),
    )  # fmt: skip
    together = objective.losses_at(batch, [100, 500, 900])
    assert [calls[name] for name in names] == [1, 1, 3]
    assert together == [objective.losses_at(batch, [timestep])[0] for timestep in (100, 500, 900)]


class Rank:
    """One of two processes; what it contributes to the sum is kept."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, index: int) -> None:
        self.process_index = index
        self.sums = torch.zeros(0)

    def reduce(self, sums: torch.Tensor, reduction: str) -> torch.Tensor:
        self.sums = sums
        return sums


class ThreeBatches:
    """Held-out data of three batches of one image; their losses are 1, 10 and 100 at every timestep."""

    timesteps = range(1000)

    def batches_of_epoch(self, seed, epoch):
        return [SimpleNamespace(captions=["a"], loss=torch.tensor(loss)) for loss in (1.0, 10.0, 100.0)]

    def batches(self, share):
        return iter(share)

    def losses_at(self, batch, timesteps):
        return [batch.loss] * len(timesteps)


def test_batches_that_two_processes_do_not_divide_are_counted_once():
    """Process 1 computes the last batch again, so that both take part equally often; the mean is that of three."""
    held_out = ThreeBatches()
    ranks = [Rank(0), Rank(1)]
    for rank in ranks:
        validator = Validator(held_out, held_out, held_out, rank, modules=[], max_batches=None)
        validator.losses(lambda compute: compute())
    assert (ranks[0].sums + ranks[1].sums).tolist() == [111.0] * 5 + [3.0]
