"""Adapter files are hours of somebody's training: they come back whole, and a wrong one is named."""

import os
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from library.cli.errors import UserError
from networks.adapters.files import load_adapter, save_adapter
from networks.lora import create_network, create_network_from_weights

SMALL = {
    "lora_a.alpha": torch.tensor(1.0),
    "lora_a.lora_down.weight": torch.arange(12.0).reshape(3, 4),
    "lora_a.lora_up.weight": torch.arange(15.0).reshape(5, 3),
}
BIG = {**SMALL, "lora_b.lora_down.weight": torch.arange(400000.0).reshape(4, 100000)}
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def read_metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture
def network(text_encoder, unet, randomize):
    return randomize(create_network(1.0, 4, 2, None, text_encoder, unet))


@pytest.mark.parametrize(
    ("tensors", "model_hash", "legacy_hash"),
    [
        (SMALL, "f334b68ccc987b3ec8a36a09fbcc0ef52ba7153fddc30386013713c5300dfac6", "e3b0c442"),
        (BIG, "f880c1d817b64d80c964011113f54772859da2c4900bc498967974d8f222f73a", "e1d01acc"),
    ],
    ids=["small", "big"],
)
def test_hashes_are_those_web_uis_compute(tmp_path, tensors, model_hash, legacy_hash):
    """With other values a web UI lists the same adapter twice, or finds it again only after hashing every file."""
    for metadata in (None, {"modelspec.title": "mine", "user_notes": "good"}):
        save_adapter(tmp_path / "a.safetensors", tensors, None, metadata)
        written = read_metadata(tmp_path / "a.safetensors")
        assert (written["sshs_model_hash"], written["sshs_legacy_hash"]) == (model_hash, legacy_hash)
        assert {key: value for key, value in written.items() if not key.startswith("sshs_")} == (metadata or {})


def test_training_metadata_counts_in_the_legacy_hash_alone(tmp_path):
    save_adapter(tmp_path / "a.safetensors", BIG, None, {"ss_seed": "1"})
    written = read_metadata(tmp_path / "a.safetensors")
    assert written["sshs_model_hash"].startswith("f880c1d8")
    assert written["sshs_legacy_hash"] != "e1d01acc"


def test_a_file_with_a_model_specification_has_the_hash_of_its_data(tmp_path):
    save_adapter(tmp_path / "a.safetensors", SMALL, None, {"modelspec.sai_model_spec": "1.0.0"})
    data = (tmp_path / "a.safetensors").read_bytes()[-4 * (1 + 12 + 15) :]
    assert read_metadata(tmp_path / "a.safetensors")["modelspec.hash_sha256"] == f"0x{sha256(data).hexdigest()}"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_come_back_as_they_were_saved(tmp_path, network, suffix, dtype):
    path = tmp_path / f"adapter{suffix}"
    metadata = {"ss_seed": "1"}
    network.save_weights(str(path), dtype, metadata)
    loaded = load_adapter(path)
    assert set(loaded) == set(network.state_dict())
    assert {tensor.dtype for tensor in loaded.values()} == {dtype}
    assert all(torch.equal(loaded[key], value.to(dtype)) for key, value in network.state_dict().items())
    assert loaded[f"{FC1}.alpha"].shape == ()
    assert metadata == {"ss_seed": "1"}


def test_a_saved_adapter_continues_and_is_recreated(tmp_path, network, text_encoder, unet, predict):
    path = tmp_path / "adapter.safetensors"
    network.save_weights(path, None, None)
    fresh = create_network(1.0, 4, 2, None, text_encoder, unet)
    assert fresh.load_weights(path).num_layers == len(list(network.layers()))
    recreated, weights = create_network_from_weights(0.5, path, None, text_encoder, unet, for_inference=True)
    for other in (fresh.state_dict(), recreated.state_dict(), weights):
        assert all(torch.equal(other[key], value) for key, value in network.state_dict().items())
    layer = next(recreated.layers())
    assert (layer.rank, layer.scale, layer.multiplier) == (4, 0.5, 0.5)
    assert recreated.get_trainable_params() == []


def test_ranks_and_alphas_of_a_file_may_differ_by_layer(network, text_encoder, unet):
    weights = network.state_dict()
    weights[f"{FC1}.lora_down.weight"] = torch.randn(7, 16)
    weights[f"{FC1}.lora_up.weight"] = torch.randn(32, 7)
    del weights[f"{FC1}.alpha"]
    recreated, _ = create_network_from_weights(1.0, None, None, text_encoder, unet, weights_sd=weights)
    layers = {layer.name: layer for layer in recreated.layers()}
    assert (layers[FC1].rank, layers[FC1].scale) == (7, 1.0)  # without alpha: unscaled
    other = layers[FC1.replace("fc1", "fc2")]
    assert (other.rank, other.scale) == (4, 0.5)


def test_the_alpha_of_continued_weights_replaces_the_networks(tmp_path, network, text_encoder, unet, caplog):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    other = create_network(1.0, 4, 1, None, text_encoder, unet)
    other.load_weights(tmp_path / "a.safetensors")
    assert {layer.scale for layer in other.layers()} == {0.5}
    assert "another alpha" in caplog.text


def test_linear_and_1x1_projections_are_exchangeable(network, text_encoder, unet):
    """SD 2.x adapters are passed on with either kind of projection; both must load."""
    weights = network.state_dict()
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    weights = {
        key: tensor.flatten(1) if key.startswith(name) and tensor.ndim == 4 else tensor
        for key, tensor in weights.items()
    }
    assert weights[f"{name}.lora_down.weight"].shape == (4, 8)
    recreated, _ = create_network_from_weights(1.0, None, None, text_encoder, unet, weights_sd=weights)
    assert recreated.state_dict()[f"{name}.lora_down.weight"].shape == (4, 8, 1, 1)


def change(weights, kind):
    if kind == "missing":
        del weights[f"{FC1}.lora_up.weight"]
    elif kind in ("unknown", "nothing of it"):
        weights = {} if kind == "nothing of it" else weights
        weights["lora_unet_nowhere.lora_down.weight"] = torch.zeros(4, 4)
        weights["lora_unet_nowhere.lora_up.weight"] = torch.zeros(4, 4)
    elif kind == "other rank":
        weights[f"{FC1}.lora_down.weight"] = torch.zeros(8, 16)
    elif kind == "other kind":
        weights["lora_unet_x.hada_w1_a"] = torch.zeros(4, 4)
    return weights


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", f"{FC1}.lora_up.weight is missing"),
        ("nothing of it", "are not in the network: lora_unet_nowhere.lora_down.weight, lora_unet_nowhere."),
        ("other rank", f"{FC1}.lora_down.weight has the shape (8, 16), the network (4, 16)"),
    ],
)
def test_weights_of_another_network_are_refused_by_file_and_key(tmp_path, network, kind, message):
    path = tmp_path / "other.safetensors"
    save_file(change(dict(network.state_dict()), kind), path)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        network.load_weights(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_goes_on_from_what_a_file_has_of_it(tmp_path, network, text_encoder, unet, caplog):
    """A LoRA of the U-Net alone begins one of both; what it lacks stays as it was made, and is named."""

    def is_of_text(name):
        return name.startswith("lora_te")

    filled = {key: value if key.endswith("alpha") else value + 1 for key, value in network.state_dict().items()}
    path = tmp_path / "unet.safetensors"
    save_file({key: value for key, value in filled.items() if not is_of_text(key)}, path)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    info = network.load_weights(path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if is_of_text(key) else filled[key])
    text_layers = [layer.name for layer in network.layers() if is_of_text(layer.name)]
    assert info.num_layers == len(list(network.layers())) - len(text_layers)
    said = f"{path}: it has no weights for {len(text_layers)} layers of the text encoder ({min(text_layers)}, ...)"
    assert caplog.messages == [f"{said}, which start untrained"]


def test_layers_of_a_file_that_the_network_has_not_are_named_and_not_used(tmp_path, network, caplog):
    path = tmp_path / "more.safetensors"
    save_file(change(dict(network.state_dict()), "unknown"), path)
    network.load_weights(path)
    assert "its weights for 1 layer of the U-Net (lora_unet_nowhere) are not used" in caplog.text


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", f"{FC1}.lora_up.weight is missing"),
        ("unknown", "2 keys are not in the network: lora_unet_nowhere.lora_down.weight"),
        ("other rank", f"{FC1}.lora_up.weight has the shape (32, 4), the network (32, 8)"),
        ("other kind", "lora_unet_x.hada_w1_a is not the key of a LoRA weight"),
    ],
)
def test_a_file_for_another_model_is_refused_by_file_and_key(tmp_path, network, text_encoder, unet, kind, message):
    path = tmp_path / "other.safetensors"
    save_file(change(dict(network.state_dict()), kind), path)
    with pytest.raises(UserError) as caught:
        create_network_from_weights(1.0, str(path), None, text_encoder, unet)
    assert str(path) in caught.value.message
    assert message in caught.value.message


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_adapter(whole, SMALL)
    for name, content in {
        "cut.safetensors": whole.read_bytes()[:-10],
        "empty.safetensors": b"",
        "cut.pt": b"PK\x03\x04 half",
        "text.ckpt": b"hello",
        "image.png": b"",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_adapter(path)
    with pytest.raises(UserError, match="not found: .*nowhere"):
        load_adapter(tmp_path / "nowhere.safetensors")
    torch.save({"epoch": 3}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="state.pt does not hold adapter weights"):
        load_adapter(tmp_path / "state.pt")


class MakesAFolderWhenUnpickled:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_not_read(tmp_path):
    torch.save({"a": MakesAFolderWhenUnpickled(tmp_path / "made")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt"):
        load_adapter(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_failed_save_leaves_the_last_good_file(tmp_path, network, monkeypatch, suffix):
    def disk_full(descriptor):
        raise OSError("no space left")

    path = tmp_path / f"adapter{suffix}"
    network.save_weights(path, None, None)
    content = path.read_bytes()
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        network.save_weights(path, torch.float16, None)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_type_that_cannot_hold_an_adapter_is_refused(tmp_path, network):
    with pytest.raises(UserError, match="cannot have the file type '.zip'"):
        network.save_weights(tmp_path / "adapter.zip", None, None)
    assert list(tmp_path.iterdir()) == []
