"""If these fail, samples are drawn from other prompts or settings than the file says."""

import logging

import pytest

from library.cli.errors import UserError, UserErrors
from library.training.evaluation.prompts import SamplePrompt, parse_prompt_line, read_prompt_file

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
    ("--n only negative", SamplePrompt("--n only negative")),
    ("a--w 512", SamplePrompt("a--w 512")),
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
    for name, content in (("a.toml", b"a"), ("none.txt", None), ("empty.txt", b"#\n\n"), ("bin.txt", b"\xff\xfe\x00")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="--sample_prompts"):
            read_prompt_file(str(tmp_path / name))
