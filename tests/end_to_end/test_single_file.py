"""If these fail, users of single-file checkpoints, of SD 2.x and of v-prediction cannot train."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.end_to_end.runs import logged, train
from tests.tiny_models import make_tiny, to_stability_layout


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_sd2_v_prediction_trains_from_a_single_file(ending, data_dir, tmp_path):
    path = tmp_path / f"model{ending}"
    tensors = to_stability_layout(make_tiny(True))
    if ending == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1}, path)
    else:
        save_file(tensors, path)
    weights = train(
        data_dir,
        tmp_path / "out",
        pretrained_model_name_or_path=path,
        v2=True,
        v_parameterization=True,
        max_train_steps=2,
        network_dim=2,
    )
    assert any(name.startswith("lora_te_text_model_encoder_layers_1_") for name in weights)
    assert weights["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].dim() == 2
    with safe_open(tmp_path / "out" / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sd_v2_v" and metadata["ss_v2"] == "True"
    assert metadata["modelspec.prediction_type"] == "v" and len(metadata["ss_new_sd_model_hash"]) == 64


def test_the_objective_changes_with_the_prediction_type(data_dir, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(to_stability_layout(make_tiny(False)), path)
    options = {"pretrained_model_name_or_path": path, "learning_rate": 0, "max_train_steps": 2}
    train(data_dir, tmp_path / "noise", **options)
    train(data_dir, tmp_path / "v", v_parameterization=True, **options)
    assert logged(tmp_path / "noise") != logged(tmp_path / "v")
