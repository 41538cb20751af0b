"""`--dry_run` writes nothing, and says what the run then does."""

from __future__ import annotations

import re

import pytest
from safetensors import safe_open

from tests.end_to_end.runs import BASE, arguments, run_command, train

OPTIONS = {
    "max_train_steps": 9, "save_every_n_steps": 4, "save_every_n_epochs": 1, "sample_every_n_epochs": 2,
    "sample_at_first": True, "cache_latents": True, "cache_latents_to_disk": True, "network_dim": 4,
}  # fmt: skip
MIB = 2**20


def dry_run(data, output, **options) -> str:
    done = run_command([*arguments(data, output, **options), "--dry_run"])
    assert done.returncode == 0, done.stderr
    return done.stderr


def sizes(text: str) -> list[float]:
    """MiB at the peak, of weights, of gradients and optimizer, of activations."""
    line = next(line for line in text.splitlines() if line.startswith("memory:"))
    return [float(number) * {"GiB": 1024, "MiB": 1}[unit] for number, unit in re.findall(r"([\d.]+) (GiB|MiB)", line)]


def base_parameters() -> int:
    """From the headers of the files."""
    total = 0
    for path in BASE.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if "position_ids" not in name:
                    total += file.get_tensor(name).numel()
    return total


def test_what_is_planned_is_what_the_run_writes(data_dir, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 1\na cat --w 64 --h 64 --s 1\n")
    options = {**OPTIONS, "sample_prompts": prompts, "dry_run_step": True}
    before = sorted(data_dir.rglob("*"))
    text = dry_run(data_dir, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() and sorted(data_dir.rglob("*")) == before
    weights = train(data_dir, tmp_path / "out", **{**options, "dry_run_step": False})
    planned = next(line for line in text.splitlines() if line.startswith("output: "))
    saved = sorted(path.name for path in (tmp_path / "out").glob("run*.safetensors"))
    assert f"{len(saved)} saves" in planned
    assert all(name in planned for name in saved) or "..." in planned and "run.safetensors" in planned
    images = list((tmp_path / "out" / "sample").glob("run_*_0?_*.png"))
    assert f"{len(images) // 2} rounds of 2 sample images" in text
    assert re.search(r"measured: \d+\.\d\d s for a micro-batch and a step", text)
    # float32 weights of the model and the LoRA; AdamW has two states for each trained parameter, beside its gradient
    trained = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith("alpha"))
    peak, kept, training, activations = sizes(text)
    assert kept == pytest.approx((base_parameters() + trained) * 4 / MIB, abs=0.2)
    assert training == pytest.approx(trained * 12 / MIB, abs=0.1)
    assert peak == pytest.approx(kept + training + activations, abs=0.2) and activations > 1


@pytest.mark.parametrize(
    ("options", "bytes_each"),
    [
        ({"optimizer_type": "Lion"}, 8),  # one state
        ({"optimizer_type": "AdaFactor", "fused_backward_pass": True, "optimizer_args": "relative_step=False"}, 0.1),
        ({"ema": True}, 16),  # a copy in float32
    ],
)
def test_options_that_save_memory_show_it(options, bytes_each, data_dir, tmp_path):
    text = dry_run(data_dir, tmp_path / "out", network_dim=64, **options)
    trained = int(re.search(r"trains unet: ([\d,]+)", text)[1].replace(",", ""))
    trained += int(re.search(r"trains textencoder: ([\d,]+)", text)[1].replace(",", ""))
    _, _, training, _ = sizes(text)
    assert training == pytest.approx(trained * bytes_each / MIB, rel=0.15, abs=0.6)


def test_mistakes_are_errors_as_in_the_run(data_dir, tmp_path):
    done = run_command([*arguments(data_dir, tmp_path, network_args="conv_dimm=4"), "--dry_run"])
    assert done.returncode == 2 and "conv_dimm" in done.stderr
