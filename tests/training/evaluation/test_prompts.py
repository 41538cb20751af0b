"""If these fail, samples are drawn from other prompts or settings than the file says."""

import json
import logging

import pytest

from library.cli.errors import UserError, UserErrors
from library.training.evaluation.prompt_files import PromptFile, read_prompt_file
from library.training.evaluation.prompts import SamplePrompt, parse_prompt_line

# lines and their meaning as users of such files know them
LINES = [
    ("a cat", SamplePrompt("a cat")),
    (
        "a cat --n bad, ugly --w 512 --h 768 --d 42 --s 30 --l 7.5",
        SamplePrompt("a cat", "bad, ugly", 512, 768, 30, 7.5, 42),
    ),
    ("a cat --W 640 --N x", SamplePrompt("a cat", "x", width=640)),
    ("a --s 0", SamplePrompt("a", sample_steps=1)),
    ("a --s 5000", SamplePrompt("a", sample_steps=1000)),
    ("a --n neg --ss euler_a", SamplePrompt("a", "neg", sampler="euler_a")),
    ("a --d -1", SamplePrompt("a")),
    ("w 10 is prompt", SamplePrompt("w 10 is prompt")),
    ("--n only negative", SamplePrompt("", "only negative")),
    ("  --W 640 --d 3", SamplePrompt("", width=640, seed=3)),
    ("--unknown 3 --d 5", SamplePrompt("--unknown 3", seed=5)),
    ("--w", SamplePrompt("--w")),
    ("a--w 512", SamplePrompt("a--w 512")),
    ("a  --w   512\t--H\t640  --ss K_Euler_A", SamplePrompt("a", width=512, height=640, sampler="euler_a")),
    ("狐 --n 悪い --d 3", SamplePrompt("狐", "悪い", seed=3)),
    ("a --w 100 --h 7", SamplePrompt("a", width=96, height=64)),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_a_line(line, expected):
    assert parse_prompt_line(line, "here") == expected


def test_a_file_skips_comments_and_empty_lines(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("# comment\n\nfirst --d 1\n   \n # not comment? \nsecond\n", encoding="utf-8")
    assert [p.prompt for p in read_prompt_file(str(file))] == ["first", "# not comment?", "second"]


def test_wrong_values_are_named_with_their_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text(f"fine\na --l abc\nb --ss dpm\nc --d {2**64}\nd --l nan\ne --d {2**64 - 1}", encoding="utf-8")
    with pytest.raises(UserErrors) as caught:
        read_prompt_file(str(file))
    first, second, third, fourth = caught.value.errors
    assert "line 4: --d 18446744073709551616" in third.message and "below 2^64" in third.hint
    assert "line 5: --l nan" in fourth.message
    assert "line 2: --l abc" in first.message and "number" in first.hint
    assert "line 3: --ss dpm" in second.message and "euler_a" in second.hint


def test_unknown_prompt_options_are_announced(caplog):
    with caplog.at_level(logging.WARNING):
        assert parse_prompt_line("a --unknown 3 --d 5", "line 1") == SamplePrompt("a", seed=5)
    assert "--unknown" in caplog.text


def test_files_that_cannot_be_used(tmp_path):
    for name, content in (
        ("a.toml", b"a"),
        ("a.csv", b"a"),
        ("a.json", b"[1]"),
        ("b.json", b"{}"),
        ("none.txt", None),
        ("empty.txt", b"#\n\n"),
        ("bin.txt", b"\xff\xfe\x00"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="--sample_prompts"):
            read_prompt_file(str(tmp_path / name))


EXPECTED = [
    SamplePrompt("a cat", "bad", 640, 512, 12, 4.5, 3, "euler"),
    SamplePrompt("a dog", "bad", 512, 512, 12, 7.5, None, "dpmsolver++"),
]
TOML = """
[prompt]
negative_prompt = "bad"
sample_steps = 12
width = 640
seed = 3
[[prompt.subset]]
prompt = "a cat"
scale = 4.5
sample_sampler = "k_euler"
[[prompt.subset]]
prompt = "a dog"
width = 512
seed = -1
sample_sampler = "dpmsolver++"
"""
TABLES = [
    {"prompt": "a cat", "negative_prompt": "bad", "width": 640, "sample_steps": 12, "scale": 4.5, "seed": 3,
     "sample_sampler": "k_euler"},
    "a dog --n bad --s 12 --ss dpmsolver++",
]  # fmt: skip


def test_tables_are_the_same_as_lines(tmp_path):
    toml, listed, nested = tmp_path / "p.toml", tmp_path / "p.json", tmp_path / "q.JSON"
    toml.write_text(TOML, encoding="utf-8-sig")
    listed.write_text(json.dumps(TABLES))
    nested.write_text(json.dumps({"prompt": {"sample_steps": 12, "subset": TABLES}}))
    for file in (toml, listed, nested):
        found = read_prompt_file(str(file))
        assert found == EXPECTED and [prompt.index for prompt in found] == [0, 1]


def test_wrong_tables_are_named_with_their_number(tmp_path, caplog):
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"prompt": "a", "widht": 3}, {"prompt": "a", "width": True}, {"seed": 1}, 3]))
    with pytest.raises(UserErrors) as caught:
        read_prompt_file(str(file))
    messages = [error.message.removeprefix(f"--sample_prompts {file}, ") for error in caught.value.errors]
    assert messages == [
        "prompt 2: width is not valid",
        "prompt 3 has no prompt",
        "prompt 4 is neither a text nor a table",
    ]
    assert "prompt 1: widht is not a key of a prompt and is ignored; did you mean width?" in caplog.text


def test_a_file_that_is_edited_during_the_run_is_read_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file = tmp_path / "p.txt"
    file.write_text("a cat\n")
    prompts = PromptFile(str(file), read_prompt_file(str(file)))
    assert prompts.prompts() == [SamplePrompt("a cat")] and not caplog.messages
    file.write_text("a dog --s many\na fox --d 2\n")
    (fox,) = prompts.prompts()
    assert (fox.prompt, fox.seed, fox.index) == ("a fox", 2, 1)
    assert "line 1: --s many is not valid: no image is generated for it; give a whole number" in caplog.text
    caplog.clear()
    for damage in (lambda: file.write_bytes(b"\xff\xfe\x00"), file.unlink):
        damage()
        assert prompts.prompts() == [fox] and "the prompts read before are used" in caplog.text
        caplog.clear()
        assert prompts.prompts() == [fox] and not caplog.messages, "said once"
    file.write_text("a bird\n")
    assert prompts.prompts() == [SamplePrompt("a bird")]
