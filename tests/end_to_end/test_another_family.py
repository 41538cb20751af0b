"""If these fail, a model family cannot arrive as a package and a line: something outside knows the present ones.

A toy family, defined here: letters are its tokens, pixels its latents, one layer its denoiser; it has a conditioning of
its own, and is trained by flow matching.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import fine_tune
import train_network
from library.cli.atomic_files import atomic_path
from library.data.caches.cache_names import CacheFormat
from library.data.records import LatentFormat
from library.diffusion.flow_matching import FlowMatching
from library.models import families
from library.models.conditioning import Conditioning
from library.models.family import AdapterBlocks, AdapterRoots
from library.models.weights.model_files import ModelFolder
from tests.end_to_end.runs import arguments, assert_same, copy_images, logged
from tests.end_to_end.whole_models import write_metadata

CHANNELS, WIDTH, SCALE = 3, 8, 4


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(CHANNELS + WIDTH + 1, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_q(x)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Mixer()

    def forward(self, latents: torch.Tensor, times: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        size = latents.shape[2:]
        maps = [latents, words[:, :, None, None].expand(-1, -1, *size), times.view(-1, 1, 1, 1).expand(-1, 1, *size)]
        return self.block(torch.cat(maps, dim=1).movedim(1, -1)).movedim(-1, 1)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(x)


class Letters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.block = nn.Embedding(256, WIDTH), Reader()

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.block(self.table(letters))


@dataclass
class MeanOfLetters(Conditioning):
    mean: torch.Tensor  # (B, width)


class ToyFamily:
    version, architecture, pipeline, usual_size = "toy", "toy", "ToyPipeline", 64
    latent_channels, vae_scale, takes_masks = CHANNELS, SCALE, False
    conditioning, caches = MeanOfLetters, CacheFormat("_toy_te.npz")

    def __init__(self, tensors, settings) -> None:
        self.process = FlowMatching(shift=2.0)
        self.unet, self.letters, self.vae = Denoiser(), Letters(), nn.Identity()
        self.text_encoders = (self.letters,)
        self._parts = nn.ModuleDict({"unet": self.unet, "letters": self.letters})
        self._parts.load_state_dict({name.removeprefix("toy."): each.float() for name, each in tensors.items()})
        self._parts.requires_grad_(False).eval().to(settings.device)

    def adapter_roots(self) -> AdapterRoots:
        return AdapterRoots(self.unet, self.text_encoders, AdapterBlocks(("Mixer",), text_encoder=("Reader",)))

    def encode_prompts(self, prompts, *, weighted=None) -> MeanOfLetters:
        means = [self.letters(torch.tensor(list(text.encode()) or [0])).mean(dim=0) for text in prompts]
        return MeanOfLetters(torch.stack(means))

    def count_tokens(self, prompts):
        return [len(text.encode()) for text in prompts]

    def encode_images(self, pixels, seeds):
        return functional.avg_pool2d(pixels, SCALE)

    def scale_latents(self, latents):
        return 2 * latents

    def decode_latents(self, latents):
        return functional.interpolate(latents / 2, scale_factor=SCALE)

    def predict(self, latents, timesteps, conditioning, framing=None, inpainting=None):
        return self.unet(latents, timesteps / 1000, conditioning.mean)

    def vae_fingerprint(self):
        return "toy"

    text_fingerprint = vae_fingerprint

    def layers_after_clip_skip(self):
        return ()

    unet_blocks = layers_after_clip_skip

    def offload_vae(self): ...

    offload_text_encoders = offload_vae

    def save_problem(self, format):
        return None

    def save(self, path: Path, *, format, dtype, metadata, epoch=0, global_step=0):
        tensors = {
            f"toy.{name}": each.detach().to(dtype).contiguous() for name, each in self._parts.state_dict().items()
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, dict(metadata))


@dataclass
class Detected:
    title = "Toy"
    source: str
    is_inpainting, unet_channels = False, None

    def objective_findings(self, options, noise, loss):
        return FlowMatching().findings(noise, loss)


@pytest.fixture
def toy(monkeypatch, tmp_path) -> Path:
    """The file of a toy model, whose family is known."""
    package = ModuleType("toy_family.model")
    package.load = lambda source, detected, options, prompts, settings: ToyFamily(source.tensors, settings)
    monkeypatch.setitem(sys.modules, "toy_family.model", package)
    monkeypatch.setitem(sys.modules, "toy_family", ModuleType("toy_family"))
    entry = families.FamilyEntry(
        "Toy",
        (),
        lambda source: not isinstance(source, ModelFolder) and all(key.startswith("toy.") for key in source.tensors),
        lambda source: Detected(str(source.path)),
        lambda detected, options, prompts: (),
        "toy_family",
        LatentFormat("_toy.npz", granularity=16),
    )
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, entry))
    torch.manual_seed(3)
    parts = nn.ModuleDict({"unet": Denoiser(), "letters": Letters()})
    save_file({f"toy.{name}": each for name, each in parts.state_dict().items()}, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def run(script, model: Path, data: Path, output: Path, **options) -> dict[str, torch.Tensor]:
    AcceleratorState._reset_state(reset_partial_state=True)
    usual = {"bucket_reso_steps": 16, "save_every_n_steps": 3, "save_state": True, "save_model_as": "safetensors"}
    described = write_metadata(data) if script is fine_tune else {}
    given = {"pretrained_model_name_or_path": model, "max_train_steps": 6, **usual, **described, **options}
    script.train(arguments(data, output, **given))
    return load_file(output / "run.safetensors")


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (train_network, {"network_dim": 2, "network_dropout": 0.1, "cache_latents_to_disk": True}),
        (
            train_network,
            {"network_train_unet_only": True, "network_dim": 2, "cache_text_encoder_outputs_to_disk": True},
        ),
        (fine_tune, {"train_text_encoder": True, "learning_rate": 1e-2}),
    ],
    ids=["lora", "lora of cached captions", "whole model"],
)
def test_a_family_that_nobody_knows_is_trained_saved_and_resumed(toy, tmp_path, script, options):
    data = copy_images(tmp_path / "images", count=3)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 4 --d 1\n")
    whole = run(script, toy, data, tmp_path / "whole", **options, sample_prompts=prompts, sample_every_n_steps=3)
    state = tmp_path / "whole" / "run-step00000003-state"
    assert_same(whole, run(script, toy, data, tmp_path / "resumed", **options, resume=state))
    assert len(logged(tmp_path / "whole")) == 6
    assert len(list((tmp_path / "whole" / "sample").glob("run_*_00_*.png"))) == 2
    names = {path.name for path in next(data.iterdir()).glob("*.npz")}
    expected = {"cache_latents_to_disk": "_toy.npz", "cache_text_encoder_outputs_to_disk": "_toy_te.npz"}
    assert all(name.endswith(tuple(expected[key] for key in options if key in expected)) for name in names)
    if script is fine_tune:
        base = load_file(toy)
        assert whole.keys() == base.keys() and not any(torch.equal(whole[name], base[name]) for name in whole)
    else:
        assert whole["lora_unet_block_to_q.lora_up.weight"].abs().max() > 0
        reader = "lora_te_text_model_block_read.lora_up.weight"
        assert (reader in whole) != ("network_train_unet_only" in options)
        assert "network_train_unet_only" in options or whole[reader].abs().max() > 0


def test_its_loss_is_that_of_flow_matching(toy, tmp_path):
    """The first logged loss against the formulas, from the family's own parts."""
    from library.data.config.options import DatasetOptions
    from library.data.images.decoding import load_image
    from library.data.load_data import load_training_data
    from library.data.randomness import derive_seed

    data = copy_images(tmp_path / "images", count=2)
    run(fine_tune, toy, data, tmp_path / "out", max_train_steps=1, learning_rate=0, train_batch_size=1)
    ((_, logged_loss),) = logged(tmp_path / "out")
    described = write_metadata(data)
    loaded = load_training_data(
        DatasetOptions(
            train_data_dir=str(described["train_data_dir"]), in_json=str(described["in_json"]), dataset_repeats=2,
            resolution=(64, 64), enable_bucket=True, min_bucket_reso=32, max_bucket_reso=128, bucket_reso_steps=16,
            caption_extension=".txt",
        )
    )  # fmt: skip
    (dataset,) = loaded.datasets
    batch = loaded.batches_of_epoch(7, 0)[0]
    index = int(dataset.items[batch.item_indices[0]])
    pixels = torch.from_numpy(load_image(dataset.latent_key(index, False)).pixels)[None]
    latents = 2 * functional.avg_pool2d(pixels, SCALE)
    generator = torch.Generator().manual_seed(derive_seed("noise", 7, batch.epoch, batch.index))
    share = torch.randn((1,), generator=generator).sigmoid()
    share = 2 * share / (1 + share)  # shift 2
    noise = torch.randn(latents.shape, generator=generator)
    tensors = load_file(toy)
    letters = torch.tensor(list(dataset.records[index].caption.encode()))
    words = (tensors["toy.letters.table.weight"][letters] @ tensors["toy.letters.block.read.weight"].T).mean(dim=0)
    noisy = (1 - share) * latents + share * noise
    size = latents.shape[2:]
    inputs = torch.cat([noisy[0], words[:, None, None].expand(-1, *size), share.view(1, 1, 1).expand(1, *size)])
    weight, bias = tensors["toy.unet.block.to_q.weight"], tensors["toy.unet.block.to_q.bias"]
    predicted = torch.einsum("oi,ihw->ohw", weight, inputs) + bias[:, None, None]
    expected = (predicted - (noise - latents)[0]).square().mean()
    assert logged_loss == pytest.approx(float(expected), rel=1e-5)
