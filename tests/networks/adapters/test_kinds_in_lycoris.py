"""Files of LoHa, LoKr and OFT give the same in the LyCORIS package as here, and its files the same here."""

import copy
import importlib

import pytest
import torch
from lycoris import kohya
from lycoris.functional import factorization

from library.methods.foreign_networks import unet_for
from networks.adapters.lokr_layer import two_factors

CASES = [
    ("networks.loha", "loha", {}),
    ("networks.loha", "loha", {"use_tucker": "True"}),
    ("networks.lokr", "lokr", {}),
    ("networks.lokr", "lokr", {"decompose_both": "True"}),
    ("networks.oft", "diag-oft", {}),
]
# the package guesses the factor of a file from its shapes, not always rightly: of these it does not read its own files
WRITTEN = [
    ("networks.lokr", "lokr", {"factor": "4", "decompose_both": "True"}),
    ("networks.lokr", "lokr", {"use_tucker": "True"}),
]


def randomize(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return network


@pytest.mark.parametrize(("module", "algo", "arguments"), CASES)
def test_the_package_reads_files_made_here(module, algo, arguments, text_encoder, unet, predict, tmp_path):
    other_text, other_unet = copy.deepcopy((text_encoder, unet))
    rank = 16 if module == "networks.oft" else 2  # the package has at most as many channels in a block as blocks
    network = importlib.import_module(module).create_network(
        1.0, rank, 1, None, text_encoder, unet, conv_dim=str(rank), **arguments
    )
    before = predict()
    randomize(network).save_weights(tmp_path / "a.safetensors", torch.float32, {})
    network.apply_to(text_encoder, unet, True, True)
    network.eval()
    theirs, _ = kohya.create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, other_text, unet_for(kohya, other_unet)
    )
    theirs.apply_to(other_text, other_unet, True, True)
    assert len(theirs.loras) == len(list(network.layers()))
    expected = predict(other_unet, other_text)
    torch.testing.assert_close(predict(), expected, rtol=1e-4, atol=1e-5)
    assert (expected - before).abs().max() > 1e-2


@pytest.mark.parametrize(("module", "algo", "arguments"), [*CASES, *WRITTEN])
def test_files_of_the_package_are_read(module, algo, arguments, text_encoder, unet, predict, tmp_path):
    other_text, other_unet = copy.deepcopy((text_encoder, unet))
    theirs = kohya.create_network(
        1.0, 2, 1, None, other_text, unet_for(kohya, other_unet), algo=algo.removeprefix(""), **arguments
    )
    theirs.apply_to(other_text, other_unet, True, True)
    randomize(theirs).eval().save_weights(str(tmp_path / "a.safetensors"), torch.float32, {})
    network, _ = importlib.import_module(module).create_network_from_weights(
        1.0, tmp_path / "a.safetensors", None, text_encoder, unet
    )
    network.apply_to(text_encoder, unet, True, True)
    network.eval()
    torch.testing.assert_close(predict(), predict(other_unet, other_text), rtol=1e-4, atol=1e-5)


def test_sizes_have_the_same_two_factors():
    for size in (*range(1, 65), 127, 128, 250, 320, 360, 512, 640, 768, 1280, 2560, 3072, 5120):
        for factor in (-1, 1, 2, 3, 4, 8, 10, 16, 125, 320):
            assert two_factors(size, factor) == factorization(size, factor), (size, factor)
