"""A misspelt or impossible network argument must stop the run, not train something else."""

import pytest

from library.cli.errors import UserError
from networks.adapters.options import Dropout, parse_network_args
from networks.lora import create_network


def test_defaults():
    options = parse_network_args("networks.lora", None, None, None, {})
    assert (options.dim, options.alpha, options.conv_dim, options.dropout) == (4, None, None, Dropout())


def test_strings_are_converted():
    options = parse_network_args("networks.lora", 8, 4, 0.1, {"conv_dim": "2", "conv_alpha": "0.5"})
    assert (options.dim, options.alpha, options.conv_dim, options.conv_alpha) == (8, 4.0, 2, 0.5)
    assert options.dropout == Dropout(neuron=0.1)


def test_a_loraplus_ratio_holds_for_both_parts_unless_one_has_its_own():
    """A ratio of 0 is what front ends write for none."""
    args = {"loraplus_lr_ratio": "16", "loraplus_unet_lr_ratio": "4", "loraplus_text_encoder_lr_ratio": "0"}
    options = parse_network_args("networks.lora", 8, 4, None, args)
    assert (options.loraplus_text_encoder_lr_ratio, options.loraplus_unet_lr_ratio) == (16, 4)


def test_conv_alpha_is_1_unless_given():
    assert parse_network_args("networks.lora", 8, 4, None, {"conv_dim": "2"}).conv_alpha == 1.0


@pytest.mark.parametrize(
    ("dim", "alpha", "dropout", "network_args", "message"),
    [
        (0, 1, None, {}, "--network_dim is 0, but must be a whole number from 1"),
        (4, -1, None, {}, "--network_alpha is -1"),
        (4, float("nan"), None, {}, "--network_alpha is nan"),
        (4, 1, 1.0, {}, "--network_dropout is 1.0"),
        (4, 1, None, {"conv_dim": "two"}, "conv_dim of --network_args is 'two', but must be a whole number"),
        (4, 1, None, {"conv_dim": "2.5"}, "conv_dim of --network_args is '2.5'"),
        (4, 1, None, {"conv_dim": "2", "conv_alpha": "x"}, "conv_alpha of --network_args is 'x'"),
        (4, 1, None, {"module_dropout": "1"}, "module_dropout of --network_args is '1', but must be a number from 0"),
        (4, 1, None, {"loraplus_lr_ratio": "-2"}, "loraplus_lr_ratio of --network_args is '-2'"),
        (4, 1, None, {"unet_rank": "4"}, "networks.lora has no argument 'unet_rank'"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(dim, alpha, dropout, network_args, message):
    with pytest.raises(UserError) as caught:
        parse_network_args("networks.lora", dim, alpha, dropout, network_args)
    assert message in caught.value.message
    assert caught.value.hint


def test_all_problems_are_reported_together(text_encoder, unet):
    with pytest.raises(UserError) as caught:
        create_network(1.0, 4, 1, None, text_encoder, unet, neuron_dropout=2, conv_dmi="2", conv_alpha="1")
    text = str(caught.value)
    assert "--network_dropout" in text
    assert "'conv_dmi'" in text
    assert "did you mean conv_dim?" in text
