"""Stable Diffusion XL and what it predicts are known from small files, and what contradicts that is said early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.cli.errors import UserError
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import detect_model


def found(path: Path, **options):
    model = detect_model(ModelOptions(str(path), **options))
    assert model is not None and model.family.title == "Stable Diffusion XL"
    return model


def findings(path: Path, prompts: PromptOptions | None = None, **options) -> list[UserError | str]:
    return list(found(path, **options).check_options(ModelOptions(str(path), **options), prompts or PromptOptions()))


def folder_with_scheduler(folder: Path, source: Path, **scheduler) -> Path:
    folder.mkdir()
    for part in source.iterdir():
        if part.name != "scheduler":
            (folder / part.name).symlink_to(part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_files_and_folders_are_known(sdxl_folder, sdxl_file, tmp_path):
    """A .ckpt too, by the names in its pickle: its tensors are cut off here."""
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(sdxl_file)}, pickled)
    for path in (sdxl_folder, sdxl_file, pickled):
        detected = found(path).detected
        assert (detected.unet_channels, detected.latent_channels) == ((4, 4), 4)
        assert detected.layout.usual_sizes["epsilon"] == 1024
        assert findings(path) == []


@pytest.mark.parametrize(
    ("keys", "metadata", "prediction", "is_rescaled"),
    [
        ((), {}, None, False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, "v_prediction", False),  # of the model it came from
        ((), {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
    ],
)
def test_what_a_file_predicts_is_known(sdxl_file, tmp_path, keys, metadata, prediction, is_rescaled):
    tensors = {key: tensor for key, tensor in load_file(sdxl_file).items() if "ln_final" in key or ".out." in key}
    path = tmp_path / "some.safetensors"
    save_file({**tensors, **{key: torch.empty(0) for key in keys}}, path, metadata or None)
    detected = found(path).detected
    assert detected.prediction_type == prediction
    assert bool(detected.scheduler.get("rescale_betas_zero_snr")) is is_rescaled


def test_what_a_folder_predicts_is_known(sdxl_folder, tmp_path):
    folder = folder_with_scheduler(tmp_path / "v", sdxl_folder, prediction_type="v_prediction")
    assert found(folder).detected.prediction_type == "v_prediction"
    folder = folder_with_scheduler(tmp_path / "x", sdxl_folder, prediction_type="sample")
    with pytest.raises(UserError, match="prediction_type is 'sample'"):
        found(folder)


def test_options_of_other_families_are_said(sdxl_file):
    (error,) = findings(sdxl_file, v2=True)
    assert error.message == f"--v2 was given, but {sdxl_file} is Stable Diffusion XL"
    (warning,) = findings(sdxl_file, PromptOptions(clip_skip=2))
    assert "--clip_skip 2 has no effect" in warning
