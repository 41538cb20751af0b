"""Peak memory, against sums done by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from library.training.monitoring.memory_meter import MemoryMeter, make_fake, weights_of

KIB = 1024  # bytes of 256 float32


def test_what_is_freed_counts_no_more_and_views_count_once():
    meter = MemoryMeter()
    held = torch.ones(256)
    meter.hold([held, held[:10], held.view(16, 16)])
    assert meter.now == KIB
    with meter:
        doubled = held * 2
        both = torch.cat([doubled, doubled.view(16, 16).flatten()])
        assert (meter.now, meter.peak) == (4 * KIB, 4 * KIB)
        del doubled
        both.add_(1)
        assert (meter.now, meter.peak) == (3 * KIB, 4 * KIB)
    del both
    assert (meter.now, meter.peak) == (KIB, 4 * KIB)


def test_fake_tensors_take_what_real_ones_would():
    """Two layers of 16 x 16 with 16 rows. Weights 2 KiB, gradients 2; the step itself: see below."""

    def step(meter: MemoryMeter, layers: nn.Sequential) -> tuple[int, int]:
        meter.hold(weights_of([layers]))
        with meter:
            layers(torch.ones(16, 16)).sum().backward()
        return meter.now, meter.peak

    layers = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    assert sum(param.numel() * 4 for param in layers.parameters()) == 2 * KIB
    real = step(MemoryMeter(), layers)
    assert real[0] == 4 * KIB  # weights and gradients
    # at the second gradient: with them input, first output and the gradient of the second output
    assert 6 * KIB <= real[1] <= 8 * KIB
    for param in layers.parameters():
        param.grad = None
    before = list(layers.parameters())
    mode = FakeTensorMode()
    replaced = make_fake([layers, layers[0]], mode)
    assert [replaced[param] for param in before] == list(layers.parameters())
    with mode:
        assert step(MemoryMeter(), layers) == real
