"""Prompts become the token ids that the models were trained with (ids measured with OpenAI's vocabulary)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from library.cli.errors import UserError
from library.models.text.tokenizer import SHIPPED_VOCABULARY, load_tokenizer

START, END = 49406, 49407

# prompt, ids between start and end for SD 1.x, the same for SD 2.x
CASES = [
    ("", [], None),
    ("a cat, sitting, red", [320, 2368, 267, 4919, 267, 736], None),
    ("1girl, solo, long_hair", [272, 1611, 267, 5797, 267, 1538, 318, 2225], None),
    ("初音ミク", [42748, 251, 165, 253, 111, 2429, 253, 3909, 363], None),
    ("café é", [15304, 4166], None),
    ("A CAT", [320, 2368], None),
    ("  spaces   here ", [9006, 763], None),
    ("don't it's we're", [847, 713, 585, 568, 649, 982], None),
    ("<|startoftext|> x", [START, 343], None),
    ("(a:1.2) [b]", [263, 320, 281, 272, 269, 273, 264, 314, 321, 316], None),
    ("! ! !", [256, 256, 256], [0, 0, 0]),
]


@pytest.fixture(scope="module", params=["shipped", "folder"])
def tokenizers(request):
    folder = SHIPPED_VOCABULARY if request.param == "folder" else None
    return load_tokenizer(folder, pads_with_end=True), load_tokenizer(folder, pads_with_end=False)


@pytest.mark.parametrize(("prompt", "ids_v1", "ids_v2"), CASES)
def test_token_ids_and_padding_of_both_generations(tokenizers, prompt, ids_v1, ids_v2):
    for tokenizer, ids, padding in ((tokenizers[0], ids_v1, END), (tokenizers[1], ids_v2 or ids_v1, 0)):
        expected = [START, *ids, END] + [padding] * (75 - len(ids))
        assert tokenizer.encode([prompt]).ids.tolist() == [[expected]]


def test_the_tokens_of_many_prompts_are_counted_as_of_one(tokenizers):
    prompts = [prompt for prompt, _, _ in CASES]
    assert tokenizers[0].counts(prompts) == [len(ids) for _, ids, _ in CASES]
    assert tokenizers[0].counts([" ".join(prompts)]) == [sum(len(ids) for _, ids, _ in CASES)]


def test_a_long_prompt_keeps_its_first_75_tokens_and_the_end(tokenizers):
    for tokenizer in tokenizers:
        ((ids,),) = tokenizer.encode(["cat " * 100]).ids.tolist()
        assert ids == [START, *[2368] * 75, END]


def test_prompts_of_a_batch_do_not_change_each_other(tokenizers):
    prompts = ["a cat", "a", "", "cat " * 100]
    for tokenizer in tokenizers:
        together = tokenizer.encode(prompts).ids
        assert together.shape == (4, 1, 77)
        assert together.tolist() == [tokenizer.encode([prompt]).ids[0].tolist() for prompt in prompts]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"vocab.json": "{}"},
        {"vocab.json": "{}", "merges.txt": ""},
        {"vocab.json": '{"a": 0', "merges.txt": "#version: 0.2"},
        {"vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}', "merges.txt": "#version: 0.2\nx y"},
        {"tokenizer.json": "{}"},
    ],
)
def test_a_tokenizer_that_knows_no_words_is_an_error_that_names_it(tmp_path, files):
    for name, contents in files.items():
        (tmp_path / name).write_text(contents)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path, pads_with_end=True)
    assert str(tmp_path) in caught.value.message


def test_a_missing_folder_is_not_looked_up_on_the_network(monkeypatch, tmp_path):
    attempts = []

    def refuse(*args, **_kwargs):
        attempts.append(args)
        raise OSError("no network in tests")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        load_tokenizer(Path("someone/tokenizer"), pads_with_end=True)
    assert attempts == []


def test_the_licence_of_the_vocabulary_comes_with_it():
    assert "Gabriel Ilharco" in (SHIPPED_VOCABULARY / "LICENSE.txt").read_text(encoding="utf-8")
    assert "open_clip_torch" in (SHIPPED_VOCABULARY / "NOTICE.txt").read_text(encoding="utf-8")
