"""What all kinds of adapters have in common: no effect at first, files that give the same again, merging, limits."""

import copy
import importlib

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from library.cli.errors import UserError
from library.methods.foreign_networks import merging_module

# network module -> rank and arguments that reach all of its tensors on models this small
KINDS = {
    "networks.loha": (2, {"conv_dim": "2", "use_tucker": "True"}),
    "networks.lokr": (1, {"conv_dim": "2", "use_tucker": "True", "factor": "4", "decompose_both": "True"}),
    "networks.lora_fa": (2, {"conv_dim": "2"}),
    "networks.dylora": (4, {"conv_dim": "2", "unit": "2"}),
    "networks.oft": (4, {"conv_dim": "2"}),
}
FILE_TENSORS = {
    "networks.loha": {"alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
    "networks.lokr": {"alpha", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lokr_w1_a", "lokr_w1_b"},
    "networks.lora_fa": {"alpha", "lora_down.weight", "lora_up.weight"},
    "networks.dylora": {"alpha", "lora_down.weight", "lora_up.weight"},
    "networks.oft": {"alpha", "oft_blocks"},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def make(kind, text_encoder, unet, **network_args):
    rank, arguments = KINDS[kind]
    return importlib.import_module(kind).create_network(
        1.0, rank, 1, None, text_encoder, unet, **arguments | network_args
    )


def train_a_little(network, std=0.1):
    """Moves the trained parameters, as training does."""
    with torch.no_grad():
        for layer in network.layers():
            for parameter in layer.trained_parameters():
                parameter.add_(torch.randn_like(parameter) * std)
    return network


def test_a_fresh_network_leaves_the_model_as_it_is_bit_for_bit(kind, text_encoder, unet, predict):
    before = predict()
    network = make(kind, text_encoder, unet)
    network.apply_to(text_encoder, unet, True, True)
    assert torch.equal(predict(), before)
    network.train()
    assert torch.equal(predict(), before)


def test_a_file_gives_the_same_network_again(kind, text_encoder, unet, predict, tmp_path):
    """To a run that starts from it, with the same arguments, and to one that takes the layers from it."""
    bare = copy.deepcopy((text_encoder, unet))
    network = train_a_little(make(kind, text_encoder, unet))
    network.save_weights(tmp_path / "a.safetensors", torch.float32, {})
    network.apply_to(text_encoder, unet, True, True)
    network.eval()
    assert {key.partition(".")[2] for key in load_file(tmp_path / "a.safetensors")} == FILE_TENSORS[kind]
    for from_weights in (False, True):
        other_text, other_unet = copy.deepcopy(bare)
        if from_weights:
            module = importlib.import_module(kind)
            other, _ = module.create_network_from_weights(1.0, tmp_path / "a.safetensors", None, other_text, other_unet)
        else:
            other = make(kind, other_text, other_unet)
            other.load_weights(tmp_path / "a.safetensors")
        other.apply_to(other_text, other_unet, True, True)
        other.eval()
        assert torch.equal(predict(other_unet, other_text), predict())


def test_a_merged_model_is_the_adapted_one(kind, text_encoder, unet, predict):
    merged_text, merged_unet = copy.deepcopy((text_encoder, unet))
    network = train_a_little(make(kind, text_encoder, unet))
    network.apply_to(text_encoder, unet, True, True)
    network.eval()
    other = make(kind, merged_text, merged_unet)
    before = predict(merged_unet, merged_text)
    other.merge_to(merged_text, merged_unet, network.state_dict())
    merged = predict(merged_unet, merged_text)
    torch.testing.assert_close(merged, predict(), rtol=1e-5, atol=1e-5)
    assert (merged - before).abs().max() > 1e-2


def test_base_weights_are_merged_by_the_module_of_their_kind(kind, text_encoder, unet, tmp_path):
    """Whatever is trained; LoRA-FA and DyLoRA files are LoRA files."""
    make(kind, text_encoder, unet).save_weights(tmp_path / "a.safetensors", torch.float32, {})
    reader = "networks.lora" if kind in ("networks.lora_fa", "networks.dylora") else kind
    for trained in ("networks.lora", "networks.oft", "lycoris.kohya"):
        module = merging_module(importlib.import_module(trained), str(tmp_path / "a.safetensors"))
        assert module.__name__ == reader


def test_gradients_reach_the_trained_parameters_alone(kind, text_encoder, unet, predict):
    network = train_a_little(make(kind, text_encoder, unet))
    network.apply_to(text_encoder, unet, True, True)
    network.prepare_optimizer_params(None, None, 1e-3)
    network.train()
    predict().square().mean().backward()
    trained = {id(parameter) for layer in network.layers() for parameter in layer.trained_parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_a_step_waits_for_no_value_of_a_tensor(kind, text_encoder, unet, predict):
    """It would wait for the device; tensors without values, as a dry run has them, have none to give."""
    network = make(kind, text_encoder, unet, module_dropout="0.5")
    network.apply_to(text_encoder, unet, True, True)
    network.prepare_optimizer_params(None, None, 1e-3)
    network.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        predict().square().mean().backward()
        scaled, *_ = network.apply_max_norm_regularization(1.0)
    assert isinstance(scaled, FakeTensor)  # the step was made, without values


def test_norms_are_limited_to_what_is_given(kind, text_encoder, unet):
    network = train_a_little(make(kind, text_encoder, unet))
    norms = torch.stack([layer.update_norm() for layer in network.layers()])
    limit = float(norms.median())
    scaled, _, largest = network.apply_max_norm_regularization(limit)
    after = torch.stack([layer.update_norm() for layer in network.layers()])
    torch.testing.assert_close(after, norms.clamp(max=limit), rtol=1e-5, atol=1e-6)
    assert int(scaled) == int((norms > limit).sum()) > 0
    assert float(largest) == pytest.approx(limit)


@pytest.mark.parametrize("kind", ["networks.loha", "networks.lokr", "networks.lora_fa", "networks.dylora"])
def test_the_norm_is_that_of_the_update_of_the_weight(kind, text_encoder, unet):
    for layer in train_a_little(make(kind, text_encoder, unet)).layers():
        expected = float(layer.weight_update().norm())
        assert float(layer.update_norm()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["networks.loha", "networks.lokr", "networks.oft"])
def test_rank_dropout_keeps_the_mean_and_ends_with_training(kind, text_encoder, unet):
    """Over many draws; what has no neurons at the rank says that --network_dropout does nothing."""
    network = train_a_little(make(kind, text_encoder, unet, rank_dropout="0.5"))
    layer = next(layer for layer in network.layers() if layer.name.endswith("ff_net_2"))
    whole = layer.eval().weight_update().detach()
    layer.train()
    drawn = torch.stack([layer.weight_update().detach() for _ in range(2000)])
    assert not torch.allclose(drawn[0], whole)
    tolerance = 6 * float(whole.abs().max()) / 2000**0.5  # six standard errors of a factor of 0 or 2
    torch.testing.assert_close(drawn.mean(0), whole, rtol=0, atol=tolerance)


def test_dropout_of_neurons_is_said_to_do_nothing_where_there_are_none(text_encoder, unet, caplog):
    for kind in KINDS:
        rank, arguments = KINDS[kind]
        importlib.import_module(kind).create_network(
            1.0, rank, 1, None, text_encoder, unet, neuron_dropout=0.1, **arguments
        )
    said = [record.getMessage() for record in caplog.records if "--network_dropout does nothing" in record.getMessage()]
    assert [line.split(": ")[1].split()[0] for line in said] == ["networks.loha", "networks.lokr", "networks.oft"]


def test_patterns_choose_layers_of_every_kind(kind, text_encoder, unet):
    network = make(kind, text_encoder, unet, exclude_patterns=".*", include_patterns=".*attn2.to_k")
    assert {layer.name[-11:] for layer in network.layers()} == {"_attn2_to_k"}


def test_a_file_of_another_kind_is_refused_with_what_it_lacks(text_encoder, unet, tmp_path):
    make("networks.loha", text_encoder, unet).save_weights(tmp_path / "loha.safetensors", torch.float32, {})
    for kind in sorted(set(KINDS) - {"networks.loha"}):
        with pytest.raises(UserError, match="is not the key of a"):
            make(kind, text_encoder, unet).load_weights(tmp_path / "loha.safetensors")
