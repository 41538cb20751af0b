"""If these fail, the command that a stopped run prints shows a secret, or begins the run at another place."""

import sys

import pytest

from library.cli.entry import run_entry
from library.cli.errors import Stopped

SECRET_FLAGS = ("--huggingface_token", "--wandb_api_key")


def printed(words, monkeypatch, capsys):
    def stop():
        raise Stopped(15, "out/run-state", SECRET_FLAGS)

    monkeypatch.setattr(sys, "argv", words)
    assert run_entry(stop) == 128 + 15
    return capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--huggingface_token", "--huggingface_tok", "--huggingface_t"])
@pytest.mark.parametrize("form", ["{} hf_abc", "{}=hf_abc"])
def test_a_secret_is_not_printed_in_any_spelling_that_is_accepted(flag, form, monkeypatch, capsys):
    said = printed(["train.py", *form.format(flag).split(), "--seed", "1"], monkeypatch, capsys)
    assert "hf_abc" not in said and "(give --huggingface_token again)" in said
    assert said.endswith("train.py --seed 1 --resume out/run-state\n")


def test_what_says_where_a_run_begins_is_left_out_abbreviated_too(monkeypatch, capsys):
    given = "--initial_ep 3 --resum=old --overw --skip_until --initial_step 4 --resume_from --name resume"
    said = printed(["train.py", *given.split()], monkeypatch, capsys)
    assert said.endswith("train.py --name resume --resume out/run-state\n")
