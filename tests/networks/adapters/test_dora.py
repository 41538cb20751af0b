"""DoRA: what is trained must be what the paper says, and what other programs make of the file."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from library.cli.errors import UserError
from networks.adapters.formats.peft import peft_form
from networks.adapters.lora_layer import LoRALayer
from networks.adapters.options import Dropout
from networks.adapters.weights import ranks_and_alphas
from networks.lora import create_network, create_network_from_weights

BASES = {
    "linear": lambda: nn.Linear(6, 5),
    "without bias": lambda: nn.Linear(6, 6, bias=False),
    "conv3x3": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "conv1x1": lambda: nn.Conv2d(3, 4, 1),
}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]().requires_grad_(False)


def inputs(base):
    return torch.randn(2, 7, 6) if isinstance(base, nn.Linear) else torch.randn(2, 3, 9, 9)


def trained(base, **settings):
    """A layer with other directions and magnitudes than the base layer's."""
    layer = LoRALayer("lora_unet_x", base, rank=2, alpha=3, use_dora=True, **settings)
    with torch.no_grad():
        layer.lora_up.weight.normal_(std=0.3)
        layer.dora_scale.mul_(torch.rand_like(layer.dora_scale) + 0.5)
    return layer


def apply(base, x, weight):
    if isinstance(base, nn.Linear):
        return functional.linear(x, weight, base.bias)
    return functional.conv2d(x, weight, base.bias, base.stride, base.padding)


def adapted_weight(layer, detach_norm=False):
    """Equation 5 of the paper: m V / |V|, by output channel, W + 3/2 up down as V."""
    up, down = layer.lora_up.weight.flatten(1), layer.lora_down.weight.flatten(1)
    direction = layer.base.weight + 1.5 * (up @ down).view(layer.base.weight.shape)
    norm = direction.flatten(1).square().sum(1).sqrt().view(layer.dora_scale.shape)
    return layer.dora_scale * direction / (norm.detach() if detach_norm else norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_dora_changes_nothing(base, dtype):
    base.to(dtype)
    if base.bias is not None:
        with torch.no_grad():
            base.weight[0] = 0  # a channel of zeros has no direction
    x = inputs(base).to(dtype)
    before = base(x)
    LoRALayer("lora_unet_x", base, rank=2, alpha=3, use_dora=True).attach()
    assert torch.equal(base(x), before)


def test_output_and_merged_weight_are_those_of_the_paper(base):
    x, layer = inputs(base), trained(base)
    expected = apply(base, x, adapted_weight(layer))
    merged = base.weight + layer.weight_update()
    torch.testing.assert_close(merged, adapted_weight(layer), rtol=0, atol=1e-6)
    layer.attach()
    torch.testing.assert_close(base(x), expected, rtol=0, atol=2e-6)
    layer.multiplier = 0.25
    with_part = apply(base, x, base.weight + 0.25 * (adapted_weight(layer) - base.weight))
    torch.testing.assert_close(base(x), with_part, rtol=0, atol=2e-6)


def test_gradients_are_those_with_a_constant_norm(base):
    """Section 4.3 of the paper."""
    x, layer = inputs(base), trained(base)
    layer.attach()
    parameters = (layer.lora_down.weight, layer.lora_up.weight, layer.dora_scale)
    ours = torch.autograd.grad(base(x).square().sum(), parameters)
    plain = torch.autograd.grad(apply(base, x, adapted_weight(layer, detach_norm=True)).square().sum(), parameters)
    for our, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(our, expected, rtol=1e-4, atol=1e-4)


def test_module_dropout_drops_the_magnitude_too(base):
    x, layer = inputs(base), trained(base, dropout=Dropout(module=0.5))
    before = base(x)
    layer.attach()
    dropped = [torch.equal(base(x), before) for _ in range(60)]
    assert 0.2 < sum(dropped) / 60 < 0.8


def test_lycoris_reads_it_as_we_trained_it(base):
    locon = pytest.importorskip("lycoris.modules.locon", reason="reads DoRA files")
    x, layer = inputs(base), trained(base)
    file = layer.state_dict()
    with torch.no_grad():
        theirs = locon.LoConModule.make_module_from_state_dict(
            "lora_unet_x",
            base,
            file["lora_up.weight"],
            file["lora_down.weight"],
            None,
            file["alpha"],
            file["dora_scale"],
        )
        theirs.eval().apply_to()
        expected = base(x)
        theirs.restore()
        layer.attach()
        torch.testing.assert_close(base(x), expected, rtol=0, atol=2e-6)


def test_older_files_of_lycoris_are_read_as_they_were_trained(base):
    """Their magnitudes are those of input channels; PEFT has none of these."""
    locon = pytest.importorskip("lycoris.modules.locon", reason="made DoRA files")
    theirs = locon.LoConModule("lora_unet_x", base, 1, 2, 3, weight_decompose=True, wd_on_out=False).eval()
    with torch.no_grad():
        theirs.lora_up.weight.normal_(std=0.3)
        theirs.dora_scale.mul_(torch.rand_like(theirs.dora_scale) + 0.5)
    names = ("lora_up.weight", "lora_down.weight", "alpha", "dora_scale")
    file = {name: theirs.state_dict()[name] for name in names}
    x = inputs(base)
    theirs.apply_to()
    expected = base(x)
    theirs.restore()
    layer = LoRALayer("lora_unet_x", base, **LoRALayer.settings_of(file))
    layer.load_state_dict(file)
    torch.testing.assert_close(apply(base, x, base.weight + layer.weight_update()), expected, rtol=0, atol=2e-6)
    layer.attach()
    torch.testing.assert_close(base(x), expected, rtol=0, atol=2e-6)
    with pytest.raises(UserError, match="magnitudes of input channels"):
        peft_form({f"lora_unet_x.{name}": tensor for name, tensor in file.items()}, "dora.safetensors")


def test_a_network_of_dora_is_saved_read_and_merged(tmp_path, text_encoder, unet, predict, randomize):
    network = randomize(create_network(1.0, 4, 2, None, text_encoder, unet, conv_dim="2", use_dora="True"))
    with torch.no_grad():
        for layer in network.layers():
            layer.dora_scale.mul_(torch.rand_like(layer.dora_scale) + 0.5)
    network.save_weights(tmp_path / "dora.safetensors")
    base = predict()
    network.apply_to(text_encoder, unet)
    trained_output = predict()
    assert (trained_output - base).abs().max() > 1e-2
    for layer in network.layers():
        layer.base.forward = layer._base_forward
    assert torch.equal(predict(), base)
    again, weights = create_network_from_weights(1.0, tmp_path / "dora.safetensors", None, text_encoder, unet)
    again.merge_to(text_encoder, unet, weights)
    torch.testing.assert_close(predict(), trained_output, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match="is a DoRA"):
        ranks_and_alphas(weights, "dora.safetensors")


def test_the_file_of_a_dora_is_not_trained_on_as_a_lora(tmp_path, text_encoder, unet):
    create_network(1.0, 4, 2, None, text_encoder, unet, use_dora="True").save_weights(tmp_path / "dora.safetensors")
    with pytest.raises(UserError, match="dora_scale"):
        create_network(1.0, 4, 2, None, text_encoder, unet).load_weights(tmp_path / "dora.safetensors")
