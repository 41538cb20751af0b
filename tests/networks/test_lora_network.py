"""An adapter in a model: what is frozen, what is trained, what is merged."""

import copy

import pytest
import torch

from networks.lora import create_network, create_network_from_weights


def make(text_encoder, unet, **network_args):
    return create_network(1.0, 4, 2, None, text_encoder, unet, neuron_dropout=None, **network_args)


def test_a_fresh_adapter_changes_nothing(text_encoder, unet, predict):
    before = predict()
    make(text_encoder, unet, conv_dim="2").apply_to(text_encoder, unet, True, True)
    assert torch.equal(predict(), before)


def test_the_seed_decides_the_initial_weights(text_encoder, unet):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(make(text_encoder, unet).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
    assert not torch.equal(states[0][key], states[2][key])
    assert states[0][key].abs().max() <= 1 / states[0][key].shape[1] ** 0.5  # uniform, bound 1 / sqrt(inputs)


def test_saved_keys_are_the_adapters_alone_and_the_models_stay_as_they_were(text_encoder, unet):
    model_keys = set(unet.state_dict()), set(text_encoder.state_dict())
    network = make(text_encoder, unet)
    network.apply_to(text_encoder, unet, True, True)
    endings = {key.partition(".")[2] for key in network.state_dict()}
    assert endings == {"alpha", "lora_down.weight", "lora_up.weight"}
    assert (set(unet.state_dict()), set(text_encoder.state_dict())) == model_keys
    assert not {id(p) for p in network.parameters()} & {id(p) for p in unet.parameters()}


def test_hooks_of_a_wrapped_layer_see_the_adapted_output(text_encoder, unet, randomize):
    layer = text_encoder.text_model.encoder.layers[0].mlp.fc1
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(1, 16)
    before = layer(x)
    randomize(make(text_encoder, unet)).apply_to(text_encoder, unet, True, True)
    assert torch.equal(layer(x), seen[1])
    assert not torch.allclose(seen[1], before)


def test_applying_twice_is_refused(text_encoder, unet):
    network = make(text_encoder, unet)
    network.apply_to(text_encoder, unet, True, True)
    with pytest.raises(AssertionError, match="applied already"):
        network.apply_to(text_encoder, unet, True, True)


@pytest.mark.parametrize(
    ("apply_text_encoder", "apply_unet", "prefix"), [(True, False, "lora_te_"), (False, True, "lora_unet_")]
)
def test_a_part_not_applied_is_neither_saved_nor_trained(text_encoder, unet, apply_text_encoder, apply_unet, prefix):
    network = make(text_encoder, unet)
    network.apply_to(text_encoder, unet, apply_text_encoder, apply_unet)
    groups, names = network.prepare_optimizer_params(1e-4, 1e-4, 1e-4)
    assert {key[: len(prefix)] for key in network.state_dict()} == {prefix}
    assert names == ["textencoder" if apply_text_encoder else "unet"]
    assert len(groups[0]["params"]) == len(network.get_trainable_params()) > 0


@pytest.mark.parametrize(
    ("text_encoder_lr", "unet_lr", "default_lr", "expected"),
    [
        (None, None, 1e-4, [("textencoder", 1e-4), ("unet", 1e-4)]),
        (5e-5, 1e-4, 2e-4, [("textencoder", 5e-5), ("unet", 1e-4)]),
        (0, 1e-4, 1e-4, [("unet", 1e-4)]),
        (5e-5, 0, 1e-4, [("textencoder", 5e-5)]),
        (None, 1e-4, None, [("unet", 1e-4)]),
        (5e-5, None, None, [("textencoder", 5e-5)]),
    ],
)
def test_each_part_is_trained_at_its_learning_rate(text_encoder, unet, text_encoder_lr, unet_lr, default_lr, expected):
    network = make(text_encoder, unet)
    network.apply_to(text_encoder, unet, True, True)
    groups, names = network.prepare_optimizer_params(text_encoder_lr, unet_lr, default_lr)
    network.prepare_grad_etc(text_encoder, unet)
    num_params = {"textencoder": 2 * len(network.text_encoder_loras), "unet": 2 * len(network.unet_loras)}
    assert [(name, group["lr"]) for name, group in zip(names, groups, strict=True)] == expected
    assert [len(group["params"]) for group in groups] == [num_params[name] for name in names]
    # what no optimizer steps must not count in the gradient norm either
    in_groups = {id(parameter) for group in groups for parameter in group["params"]}
    assert {id(parameter) for parameter in network.get_trainable_params()} == in_groups


# names, rates and numbers of tensors measured on the trainer whose arguments these are
LORAPLUS = [
    (
        {"loraplus_lr_ratio": "16"},
        (None, None, 1e-4),
        [("textencoder", 1e-4), ("textencoder plus", 1.6e-3), ("unet", 1e-4), ("unet plus", 1.6e-3)],
    ),
    (
        {"loraplus_unet_lr_ratio": "4", "loraplus_text_encoder_lr_ratio": "2"},
        (5e-5, 1e-4, 2e-4),
        [("textencoder", 5e-5), ("textencoder plus", 1e-4), ("unet", 1e-4), ("unet plus", 4e-4)],
    ),
]


@pytest.mark.parametrize(("network_args", "rates", "expected"), LORAPLUS)
def test_loraplus_trains_lora_up_at_its_own_rate(text_encoder, unet, network_args, rates, expected):
    network = make(text_encoder, unet, **network_args)
    groups, names = network.prepare_optimizer_params(*rates)
    assert names == [name for name, _ in expected]
    assert [group["lr"] for group in groups] == pytest.approx([rate for _, rate in expected], rel=1e-12)
    plus = {id(param) for group, name in zip(groups, names, strict=True) if "plus" in name for param in group["params"]}
    assert plus == {id(param) for name, param in network.named_parameters() if "lora_up" in name}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_gradients_reach_every_adapter_weight_and_no_model_weight(text_encoder, unet, predict, randomize):
    network = randomize(make(text_encoder, unet, conv_dim="2"))
    network.apply_to(text_encoder, unet, True, True)
    network.prepare_grad_etc(text_encoder, unet)
    network.on_epoch_start(text_encoder, unet)
    predict().square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(parameter.grad is None for model in (unet, text_encoder) for parameter in model.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(text_encoder, unet, predict, randomize):
    network = randomize(make(text_encoder, unet, conv_dim="2"))
    network.apply_to(text_encoder, unet, True, True)

    def gradients():
        network.zero_grad()
        predict().square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    unet.train()  # Diffusers checkpoints blocks in training mode alone; the tiny model has no dropout
    plain = gradients()
    calls = []
    inner = next(layer.base for layer in network.unet_loras if layer.name.endswith("attn1_to_q"))
    inner.register_forward_hook(lambda *_: calls.append(1))
    unet.enable_gradient_checkpointing()
    network.enable_gradient_checkpointing()
    for checkpointed, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(checkpointed, expected, rtol=1e-5, atol=1e-8)
    assert len(calls) == 2  # forward, and again in backward


def test_the_multiplier_scales_the_update(text_encoder, unet, predict, randomize):
    base = predict()
    network = randomize(make(text_encoder, unet))
    layer = text_encoder.text_model.encoder.layers[0].mlp.fc1
    x = torch.randn(1, 16)
    without = layer(x)
    network.apply_to(text_encoder, unet, True, True)
    full = layer(x)
    network.set_multiplier(0.25)
    torch.testing.assert_close(layer(x) - without, 0.25 * (full - without), rtol=1e-4, atol=1e-6)
    network.set_multiplier(0)
    assert torch.equal(predict(), base)


@pytest.mark.parametrize("network_args", [{}, {"conv_dim": "2", "conv_alpha": "3"}])
def test_merging_gives_what_applying_gives(text_encoder, unet, predict, randomize, network_args):
    base = predict()
    weights = randomize(make(text_encoder, unet, **network_args)).state_dict()
    merged_unet, merged_text_encoder = copy.deepcopy(unet), copy.deepcopy(text_encoder)
    other, _ = create_network_from_weights(0.7, None, None, merged_text_encoder, merged_unet, weights_sd=weights)
    other.merge_to(merged_text_encoder, merged_unet, weights, torch.float32, "cpu")
    network, _ = create_network_from_weights(0.7, None, None, text_encoder, unet, weights_sd=weights)
    network.apply_to(text_encoder, unet, True, True)
    assert (predict() - base).abs().max() > 1e-2
    torch.testing.assert_close(predict(merged_unet, merged_text_encoder), predict(), rtol=0, atol=2e-5)


def test_merging_one_part_leaves_the_other(text_encoder, unet, randomize):
    network = randomize(make(text_encoder, unet))
    unet_before, text_before = copy.deepcopy(unet.state_dict()), copy.deepcopy(text_encoder.state_dict())
    unet_weights = {key: value for key, value in network.state_dict().items() if key.startswith("lora_unet_")}
    network.merge_to(text_encoder, unet, unet_weights)
    assert all(torch.equal(value, text_before[key]) for key, value in text_encoder.state_dict().items())
    changed = [key for key, value in unet.state_dict().items() if not torch.equal(value, unet_before[key])]
    assert len(changed) == len(network.unet_loras)


def test_casting_the_adapter_leaves_the_model(text_encoder, unet):
    network = make(text_encoder, unet)
    network.apply_to(text_encoder, unet, True, True)
    network.to(torch.bfloat16)
    assert unet.dtype == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
