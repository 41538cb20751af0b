"""If these fail, a secret is on a page that people share, or its command makes another run."""

import pytest

import train_network
from library.cli.parser import parse_options
from library.training.context import Context
from library.training.loop.run_command import RunCommand

GIVEN = ["--pretrained_model_name_or_path", "m", "--output_dir", "out", "--resolution", "512"]
GIVEN += ["--train_data_dir", "data"]


def command_of(argv):
    options = parse_options(argv, train_network.OPTION_GROUPS, program="", description="")
    return RunCommand(Context(train_network.SCRIPT, options), ["python"], argv)


@pytest.mark.parametrize("given", [["--huggingface_token", "hf_abcdefgh"], ["--huggingface_tok=hf_abcdefgh"]])
def test_secrets_are_left_out(given):
    command = command_of([*GIVEN, *given, "--seed", "3"])
    assert command.words(3) == ["python", "train_network.py", *GIVEN, "--seed", "3"]
    assert "huggingface_token" not in command.options()
    assert command.without_secrets("GET https://x/?token=hf_abcdefgh failed") == "GET https://x/?token=... failed"


def test_a_seed_that_was_drawn_is_in_the_command_and_resuming_is_not():
    command = command_of([*GIVEN, "--resume", "auto", "--overwrite"])
    assert command.words(42) == ["python", "train_network.py", *GIVEN, "--seed", "42"]
    assert command.options() == {
        "pretrained_model_name_or_path": "m",
        "output_dir": "out",
        "resolution": [512, 512],
        "train_data_dir": "data",
    }
