"""OFT, LoKr, DyLoRA and LoRA-FA against NumPy and the properties that their papers state."""

import numpy as np
import pytest
import torch
from torch import nn

from library.cli.errors import UserError
from networks.adapters.dylora_layer import DyLoRALayer
from networks.adapters.lokr_layer import LoKrLayer
from networks.adapters.lora_fa_layer import LoRAFALayer
from networks.adapters.oft_layer import OFTLayer

BASES = [lambda: nn.Linear(6, 12), lambda: nn.Conv2d(6, 12, 3, stride=2, padding=1)]


def inputs(base):
    return torch.randn(3, 5, 6) if isinstance(base, nn.Linear) else torch.randn(3, 6, 8, 8)


def attached(layer_class, base, **settings):
    base.requires_grad_(False)
    layer = layer_class("layer", base, multiplier=1.0, **settings)
    with torch.no_grad():
        for parameter in layer.trained_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    layer.attach()
    return layer


@pytest.mark.parametrize("make_base", BASES)
def test_oft_rotates_blocks_of_output_channels(make_base):
    """The weight is R^T W with the Cayley rotation of each block; in a block norms and angles of columns are kept."""
    base = make_base()
    layer = attached(OFTLayer, base, rank=5, alpha=1.0)
    assert layer.oft_blocks.shape == (4, 3, 3)  # the largest number of blocks up to 5 that divides 12
    weight = base.weight.detach().double().numpy().reshape(4, 3, -1)
    rotated = np.empty_like(weight)
    for block in range(4):
        skew = layer.oft_blocks[block].detach().double().numpy()
        skew = skew - skew.T
        rotation = (np.eye(3) + skew) @ np.linalg.inv(np.eye(3) - skew)
        rotated[block] = rotation.T @ weight[block]
    update = layer.weight_update().detach().double().numpy().reshape(4, 3, -1)
    np.testing.assert_allclose(update, rotated - weight, atol=1e-6)
    adapted = weight + update
    np.testing.assert_allclose(adapted.transpose(0, 2, 1) @ adapted, weight.transpose(0, 2, 1) @ weight, atol=1e-5)


def test_oft_files_have_no_limit_that_programs_could_read_differently():
    """Some take alpha as the largest norm of Q, some alpha * output channels; 0 is none for all."""
    for alpha in (None, 1.0, 8.0):
        assert float(OFTLayer("layer", nn.Linear(4, 6), rank=2, alpha=alpha).state_dict()["alpha"]) == 0


def test_the_alpha_of_an_oft_file_limits_its_rotation():
    """To alpha * output channels, as the norm of Q; 0 is no limit."""
    layer = attached(OFTLayer, nn.Linear(4, 6), rank=2, alpha=None)
    tensors = {"oft_blocks": torch.randn(2, 3, 3), "alpha": torch.tensor(0.05)}
    layer.load_state_dict(tensors)
    skew = (tensors["oft_blocks"] - tensors["oft_blocks"].mT).double().numpy()
    skew *= 0.05 * 6 / np.linalg.norm(skew)
    assert float(layer.update_norm()) == pytest.approx(0.3, rel=1e-5)
    one = np.eye(3)
    rotations = np.stack([(one + block) @ np.linalg.inv(one - block) for block in skew])
    weight = layer.base.weight.detach().double().numpy().reshape(2, 3, -1)
    expected = (rotations.transpose(0, 2, 1) - one) @ weight
    np.testing.assert_allclose(layer.weight_update().detach().numpy().reshape(2, 3, -1), expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_the_alpha_of_a_lokr_without_low_rank_has_no_effect(alpha):
    """There is no rank that it could be divided by."""
    tensors = {"lokr_w1": torch.randn(2, 3), "lokr_w2": torch.randn(3, 2), "alpha": torch.tensor(alpha)}
    layer = LoKrLayer("layer", nn.Linear(6, 6), **LoKrLayer.settings_of(tensors))
    layer.load_state_dict(tensors)
    expected = np.kron(tensors["lokr_w1"].numpy(), tensors["lokr_w2"].numpy())
    np.testing.assert_allclose(layer.weight_update().detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("make_base", BASES)
def test_dylora_trains_one_block_of_ranks_and_leaves_out_those_behind(make_base):
    base = make_base()
    layer = attached(DyLoRALayer, base, rank=6, alpha=3.0, unit=2)
    x, seen = inputs(base), set()
    with torch.no_grad():
        plain = layer.base_output(x)
    for seed in range(12):
        layer.zero_grad()
        torch.manual_seed(seed)
        update = base(x) - plain
        update.square().sum().backward()
        with_gradient = (layer.lora_down.weight.grad.flatten(1).abs().sum(1) > 0).nonzero().flatten().tolist()
        start = with_gradient[0]
        assert with_gradient == [start, start + 1] and start % 2 == 0
        up_gradient = layer.lora_up.weight.grad.flatten(1).abs().sum(0) > 0
        assert up_gradient.nonzero().flatten().tolist() == with_gradient
        seen.add(start)
        end = start + 2
        down = layer.lora_down.weight[:end].detach().double().numpy().reshape(end, -1)
        up = layer.lora_up.weight[:, :end].detach().double().numpy().reshape(12, end)
        weight = torch.from_numpy(3.0 / end * (up @ down)).float().reshape(base.weight.shape)
        torch.testing.assert_close(update.detach(), layer.apply_weight(x, weight), rtol=1e-4, atol=1e-5)
    assert seen == {0, 2, 4}


def test_dylora_draws_from_torchs_generator_and_uses_all_ranks_at_inference():
    base = nn.Linear(6, 12)
    layer = attached(DyLoRALayer, base, rank=8, alpha=4.0)
    x = inputs(base)
    drawn = []
    for seed in (1, 2, 3, 4, 1, 2, 3, 4):
        torch.manual_seed(seed)
        drawn.append(base(x))
    assert all(torch.equal(*pair) for pair in zip(drawn[:4], drawn[4:], strict=True))
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:4])
    layer.eval()
    whole = nn.functional.linear(x, base.weight + 4 / 8 * layer.lora_up.weight @ layer.lora_down.weight, base.bias)
    torch.testing.assert_close(base(x), whole, rtol=1e-4, atol=1e-5)


def test_a_rank_that_is_no_multiple_of_the_unit_is_refused():
    with pytest.raises(UserError, match="rank 6, which is no multiple of unit=4"):
        DyLoRALayer("lora_unet_x", nn.Linear(4, 4), rank=6, unit=4, alpha=None)


def test_lora_fa_keeps_the_projection_and_less_for_the_backward_pass():
    """Of the layer's input only its projection to the rank is kept for the gradients."""
    base = nn.Linear(64, 12)
    layer = attached(LoRAFALayer, base, rank=2, alpha=2.0)
    layer.requires_grad_(False)
    for parameter in layer.trained_parameters():
        parameter.requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        base(torch.randn(5, 64)).sum().backward()
    assert (5, 2) in kept and (5, 64) not in kept
    assert layer.lora_down.weight.grad is None and layer.lora_up.weight.grad is not None
