"""Trained and merged adapters must act as they do in other programs: numbers measured there, kept in a file here."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from networks.adapters.lora_layer import LoRALayer
from networks.adapters.options import Dropout

CASES = json.loads(Path(__file__).with_name("lora_arithmetic.json").read_text())
MAKE_BASE = {
    "linear": lambda: nn.Linear(6, 5),
    "conv3x3": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "conv1x1": lambda: nn.Conv2d(3, 4, 1),
}


@pytest.fixture(params=CASES, ids=lambda case: case["module"])
def case(request):
    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in request.param.items()}


@pytest.fixture
def layer(case):
    base = MAKE_BASE[case["module"]]()
    base.load_state_dict({"weight": case["W"], "bias": case["b"]})
    layer = LoRALayer("lora", base, rank=case["rank"], alpha=case["alpha"], multiplier=case["multiplier"])
    layer.load_state_dict({"lora_down.weight": case["down"], "lora_up.weight": case["up"], "alpha": layer.alpha})
    return layer


def test_output_beside_the_layer(case, layer):
    torch.testing.assert_close(layer.base(case["x"]), case["y_base"], rtol=0, atol=1e-6)
    layer.attach()
    torch.testing.assert_close(layer.base(case["x"]), case["y_lora"], rtol=1e-6, atol=2e-6)


def test_output_merged_into_the_layer(case, layer):
    layer.merge()
    torch.testing.assert_close(layer.base.weight, case["W_merged"], rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.base(case["x"]), case["y_lora"], rtol=1e-6, atol=2e-6)


def test_an_attached_layer_is_neither_attached_nor_merged_again(layer):
    layer.attach()
    with pytest.raises(AssertionError, match="attached already"):
        layer.attach()
    with pytest.raises(AssertionError, match="count twice"):
        layer.merge()


@pytest.mark.parametrize("alpha", [None, 0])
def test_without_alpha_the_update_is_not_scaled(alpha):
    layer = LoRALayer("lora", nn.Linear(3, 3), rank=8, alpha=alpha)
    assert layer.scale == 1.0
    assert layer.alpha == 8


def test_alpha_of_loaded_weights_is_used(case, layer):
    """A file's alpha that is shown but not used would give another image than the file's maker saw."""
    layer.load_state_dict({**layer.state_dict(), "alpha": torch.tensor(1.0)})
    assert layer.scale == 1.0 / case["rank"]


def test_a_half_precision_base_computes_the_update_in_the_adapters_precision():
    base = nn.Linear(6, 5).to(torch.bfloat16)
    layer = LoRALayer("lora", base, rank=2, alpha=1)
    nn.init.normal_(layer.lora_up.weight)
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    exact = x.double() @ layer.weight_update().double().T
    torch.testing.assert_close(layer.update(x).double(), exact, rtol=0, atol=1e-6)
    layer.attach()
    assert base(x).dtype == torch.bfloat16
    base(x).float().sum().backward()
    assert layer.lora_down.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("base", [nn.Linear(6, 5), nn.Conv2d(3, 4, 3)], ids=["linear", "convolution"])
def test_the_norm_of_the_update_is_that_of_the_product(base):
    layer = LoRALayer("lora", base, rank=2, alpha=1, multiplier=-0.7)
    nn.init.normal_(layer.lora_up.weight)
    torch.testing.assert_close(layer.update_norm(), torch.linalg.vector_norm(layer.weight_update()))


def test_under_autocast_the_update_follows_it():
    base = nn.Linear(6, 5)
    layer = LoRALayer("lora", base, rank=2, alpha=1)
    layer.attach()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.update(torch.randn(3, 6)).dtype == torch.bfloat16
        assert base(torch.randn(3, 6)).dtype == torch.bfloat16


def test_neuron_dropout_acts_in_training_alone():
    layer = LoRALayer("lora", nn.Linear(6, 64), rank=32, alpha=32, dropout=Dropout(neuron=0.5))
    with torch.no_grad():
        layer.lora_down.weight.fill_(1.0)
        layer.lora_up.weight.copy_(torch.eye(64, 32))
    x = torch.ones(200, 6)
    hidden = layer.update(x)[:, :32]  # each of the 32 is 6, or dropped, or 12
    assert set(hidden.unique().tolist()) == {0.0, 12.0}
    assert 0.45 < (hidden == 0).float().mean() < 0.55
    layer.eval()
    assert set(layer.update(x)[:, :32].unique().tolist()) == {6.0}


@pytest.mark.parametrize("base", [nn.Linear(6, 64), nn.Conv2d(6, 64, 1)], ids=["linear", "convolution"])
def test_rank_dropout_drops_a_rank_of_a_whole_sample(base):
    layer = LoRALayer("lora", base, rank=32, alpha=32, dropout=Dropout(rank=0.25))
    with torch.no_grad():
        layer.lora_down.weight.fill_(1.0)
        layer.lora_up.weight.flatten(1).copy_(torch.eye(64, 32))
    is_linear = isinstance(base, nn.Linear)
    x = torch.ones(200, 5, 6) if is_linear else torch.ones(200, 6, 5, 1)
    update = layer.update(x).reshape(200, *((5, 64) if is_linear else (64, 5)))
    hidden = (update if is_linear else update.transpose(1, 2))[..., :32]  # (samples, tokens or pixels, rank)
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    dropped = hidden == 0
    assert 0.22 < dropped.float().mean() < 0.28 and len(dropped[:, 0].unique(dim=0)) == 200
    torch.testing.assert_close(hidden[~dropped], torch.full_like(hidden[~dropped], 6 / 0.75))
    layer.eval()
    assert (layer.update(x) == 0).float().mean() == 0.5  # the outputs beyond the rank


def test_module_dropout_drops_whole_updates_in_training_alone():
    layer = LoRALayer("lora", nn.Linear(6, 5), rank=2, alpha=1, dropout=Dropout(module=0.3))
    nn.init.normal_(layer.lora_up.weight)
    x = torch.randn(3, 6)
    whole = x @ layer.weight_update().T
    updates = [layer.update(x).detach() for _ in range(300)]
    kept = [update for update in updates if update.any()]
    assert 0.2 < 1 - len(kept) / len(updates) < 0.4
    for update in kept:
        torch.testing.assert_close(update, whole)
    layer.eval()
    assert all(layer.update(x).any() for _ in range(50))
