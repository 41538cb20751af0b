"""What a model's small files say is what it is when loaded, and options that contradict it are found without that."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.cli.errors import UserError
from library.diffusion.options import NoiseOptions
from library.diffusion.validation_rules import ScheduleShape
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import detect_model, load_family
from library.models.stable_diffusion.layout import layout_of


def found(path, **options):
    model = detect_model(ModelOptions(str(path), **options))
    assert model is not None
    return model


def findings(path, prompts=None, **options):
    """The first words of each error, and of each warning."""
    all_found = found(path, **options).check_options(ModelOptions(str(path), **options), prompts or PromptOptions())
    errors = [str(each) for each in all_found if isinstance(each, UserError)]
    return errors


def test_a_file_and_a_folder_say_what_the_tiny_models_are_made_of(tiny, folder, tmp_path, stability_layout):
    """2 layers in the text encoder of the 1.x model; in a 2.x file the last of 3 blocks is not used."""
    file = tmp_path / "model.safetensors"
    save_file(stability_layout(tiny), file)
    for path in (folder, file):
        detected = found(path).detected
        assert (detected.layout, detected.num_text_layers) == (layout_of(tiny.is_v2), 2)
        assert (detected.unet_channels, detected.latent_channels) == ((4, 4), 4)
        assert findings(path, PromptOptions(clip_skip=2)) == []
        (error,) = findings(path, PromptOptions(clip_skip=3))
        assert "--clip_skip 3" in error and "has 2 layers" in error
    assert bool(findings(folder, v2=True)) is not tiny.is_v2


@pytest.mark.parametrize(
    ("scheduler", "options", "expected"),
    [
        ({}, {}, ScheduleShape(1000, ends_in_noise=False)),
        ({"num_train_timesteps": 500}, {}, ScheduleShape(500, ends_in_noise=False)),
        ({"rescale_betas_zero_snr": True}, {}, ScheduleShape(1000, ends_in_noise=True)),
        ({}, {"zero_terminal_snr": True}, ScheduleShape(1000, ends_in_noise=True)),
        ({"trained_betas": [0.1, 0.2, 1.0]}, {}, ScheduleShape(3, ends_in_noise=True)),
        ({"num_train_timesteps": "many"}, {}, ScheduleShape(1000, ends_in_noise=False)),
    ],
)
def test_the_schedule_is_known_from_its_configuration(folder_v1, tmp_path, scheduler, options, expected):
    for name in ("unet", "vae", "text_encoder"):
        (tmp_path / name).symlink_to(folder_v1 / name)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert found(tmp_path).detected.schedule_shape(NoiseOptions(**options)) == expected


def test_a_pickle_is_known_by_the_names_in_it(tiny, tmp_path, stability_layout):
    """Of a .ckpt of several gigabytes too, before a tensor is read."""
    torch.save({"state_dict": stability_layout(tiny), "metadata": {"a": "b"}}, tmp_path / "model.ckpt")
    assert findings(tmp_path / "model.ckpt", PromptOptions(clip_skip=3))[0].startswith("--clip_skip 3")
    detected = found(tmp_path / "model.ckpt").detected
    assert (detected.layout, detected.num_text_layers) == (layout_of(tiny.is_v2), 2)
    assert (detected.unet_channels, detected.latent_channels) == ((4, 4), 4)


def test_what_has_no_small_files_is_checked_when_it_is_loaded(file_v1, tmp_path):
    """The pickles of versions before 1.6 are no zip files: their tensors come among the names."""
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"state_dict": load_file(file_v1)}, tmp_path / "model.ckpt", **old)
    options = ModelOptions(str(tmp_path / "model.ckpt"), v2=True)
    assert detect_model(options) is None and detect_model(ModelOptions("owner/name")) is None
    with pytest.raises(UserError, match="--v2 was given"):
        load_family(options)
