"""A model named by its path on the Hub: downloaded once, then taken from the cache without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from library.models.layouts.vae_loading import load_vae
from library.models.options import ModelOptions
from library.models.registry import load_family, read_model
from tests.hub_server import Hub, running_hub
from tests.tiny_models import TinySDXL, write_sdxl_folder


@dataclass
class Caller:
    """Asks a Hub on this machine, with a cache that is empty at first."""

    hub: Hub
    home: Path

    def local_path(self, name: str, **environment: str) -> str:
        """What `local_path` says of a name, in a program of its own: the Hub's library reads its settings once."""
        program = """
import sys
from library.cli.errors import UserError
from library.models.weights.hub_download import local_path
try:
    print(local_path(sys.argv[1], "--model"))
except UserError as error:
    print("error:", error, error.hint)
"""
        done = subprocess.run(
            [sys.executable, "-c", program, name],
            env={**os.environ, **self.hub.environment(self.home), **environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def caller(folder_v1: Path, tmp_path: Path) -> Iterator[Caller]:
    """Asks a Hub that has one model, "someone/tiny"."""
    with running_hub() as hub:
        hub.add_folder("someone/tiny", folder_v1)
        yield Caller(hub, tmp_path / "home")


def test_a_model_is_downloaded_once_and_then_taken_from_the_cache(caller: Caller, folder_v1: Path) -> None:
    path = Path(caller.local_path("someone/tiny"))
    family = load_family(ModelOptions(str(path)))
    assert family.version == "sd_v1"
    asked_for = set(caller.hub.downloads())
    assert {"model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"} <= asked_for
    caller.hub.requests.clear()
    assert Path(caller.local_path("someone/tiny")) == path
    assert caller.hub.downloads() == []
    for nowhere in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        assert Path(caller.local_path("someone/tiny", **nowhere)) == path


def test_of_each_part_one_file_of_weights_is_downloaded(caller: Caller, folder_v1: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_v1, tmp_path / "model")
    for name in ("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "v1.ckpt"):
        (folder / name).write_bytes(b"unwanted")
    caller.hub.add_folder("someone/tiny", folder)
    caller.local_path("someone/tiny")
    weights = [name for name in caller.hub.downloads() if not name.endswith((".json", ".txt"))]
    assert sorted(weights) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_shards_and_both_text_encoders_are_downloaded(caller: Caller, tiny_sdxl: TinySDXL, tmp_path: Path) -> None:
    folder = write_sdxl_folder(tiny_sdxl, tmp_path / "model", max_shard_size="1MB")
    whole = folder / "text_encoder" / "model.fp16.safetensors"  # unwanted: there are shards in full precision
    whole.write_bytes(b"unwanted")
    caller.hub.add_folder("someone/xl", folder)
    path = Path(caller.local_path("someone/xl"))
    expected = {str(each.relative_to(folder)) for each in folder.rglob("*.safetensors") if each != whole}
    assert {name for name in caller.hub.downloads() if name.endswith(".safetensors")} == expected
    assert all((path / "tokenizer_2" / name).is_file() for name in ("vocab.json", "merges.txt"))
    parts = read_model(ModelOptions(str(path))).loaded.parts
    assert list(parts.text_encoders) == ["text_encoder", "text_encoder_2"]


def test_a_vae_of_the_hub_is_downloaded(caller: Caller, folder_v1: Path) -> None:
    caller.hub.add_folder("someone/tiny", folder_v1 / "vae")
    path = caller.local_path("someone/tiny")
    assert sorted(caller.hub.downloads()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert load_vae(path, 0.18215).config.latent_channels == 4


def test_what_the_hub_does_not_have_is_said_in_two_lines(caller: Caller) -> None:
    said = caller.local_path("someone/else")
    assert said.startswith("error: --model someone/else: neither a file or folder here nor a model on the Hub")
    offline = caller.local_path("someone/tiny", HF_HUB_OFFLINE="1")
    assert offline.startswith("error: --model someone/tiny: no file or folder here, the Hub cannot be reached")


def test_a_model_in_another_layout_is_refused(caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.ckpt").write_bytes(b"x")
    caller.hub.add_folder("someone/tiny", tmp_path / "other")
    assert "not in the Diffusers layout" in caller.local_path("someone/tiny")
