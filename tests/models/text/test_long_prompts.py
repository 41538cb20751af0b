"""Long and weighted prompts: what reaches the model, against values computed here piece by piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from library.cli.errors import UserError
from library.models.options import ModelOptions, PromptOptions, parse_token_length
from library.models.registry import load_family
from library.models.text.prompt_weights import parse_prompt_weights
from library.models.text.tokenizer import load_tokenizer

WEIGHT_CASES = json.loads((Path(__file__).parent / "prompt_weights.json").read_text(encoding="utf-8"))
START, END = 49406, 49407
CAT = 2368


@pytest.mark.parametrize(("prompt", "expected"), WEIGHT_CASES)
def test_brackets_weigh_as_in_other_programs(prompt: str, expected: list) -> None:
    parts = parse_prompt_weights(prompt)
    assert [text for text, _ in parts] == [text for text, _ in expected]
    assert [weight for _, weight in parts] == pytest.approx([weight for _, weight in expected], abs=1e-9)


def test_what_only_looks_like_a_number_stays_text() -> None:
    assert parse_prompt_weights("(a:1..2)") == [("a:1..2", 1.1)]
    assert parse_prompt_weights("(a:.)") == [("a:.", 1.1)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(None, pads_with_end=True)


@pytest.mark.parametrize(
    ("length", "num_cats", "pieces"),
    [
        (75, 74, [[START, *[CAT] * 74, END, END]]),
        (75, 76, [[START, *[CAT] * 75, END]]),
        (150, 75, [[START, *[CAT] * 75, END], [START, END, *[END] * 75]]),
        (150, 76, [[START, *[CAT] * 75, END], [START, CAT, END, *[END] * 74]]),
        (150, 500, [[START, *[CAT] * 75, END], [START, *[CAT] * 75, END]]),
        (225, 151, [[START, *[CAT] * 75, END], [START, *[CAT] * 75, END], [START, CAT, END, *[END] * 74]]),
    ],
)
def test_long_prompts_are_cut_into_pieces_of_75(tokenizer, length: int, num_cats: int, pieces: list) -> None:
    tokens = tokenizer.encode(["cat " * num_cats], PromptOptions(max_token_length=length))
    assert tokens.ids[0].tolist() == pieces
    assert tokens.weights is None
    assert tokenizer.count("cat " * num_cats) == num_cats


def test_an_empty_piece_of_a_2x_model_has_its_end_token_and_is_padded_with_exclamation_marks() -> None:
    second = load_tokenizer(None, pads_with_end=False)
    tokens = second.encode(["cat"], PromptOptions(max_token_length=150))
    assert tokens.ids[0].tolist() == [[START, CAT, END, *[0] * 74], [START, END, *[0] * 75]]


def test_every_token_of_a_part_has_its_weight(tokenizer) -> None:
    tokens = tokenizer.encode(["a (1girl:1.3) [cat]"], weighted=True)
    assert tokens.ids[0, 0, :7].tolist() == [START, 320, 272, 1611, CAT, END, END]
    assert tokens.weights[0, 0, :7].tolist() == pytest.approx([1, 1, 1.3, 1.3, 1 / 1.1, 1, 1])
    assert tokens.weights[0, 0, 6:].eq(1).all()
    plain = tokenizer.encode(["a (1girl:1.3) [cat]"])
    assert plain.ids[0, 0, 2] == 263  # the bracket is read as a token


def test_without_padding_captions_are_as_long_as_the_longest(tokenizer) -> None:
    tokens = tokenizer.encode(["a cat", "a"], PromptOptions(no_token_padding=True))
    assert tokens.ids.tolist() == [[[START, 320, CAT, END]], [[START, 320, END, END]]]


@pytest.mark.parametrize("clip_skip", [None, 1, 2])
@pytest.mark.parametrize("length", [75, 225])
def test_pieces_are_encoded_apart_and_joined(folder, tiny, length: int, clip_skip: int | None) -> None:
    """Start of the first piece, 75 states of each, end of the last; weights multiply the states."""
    family = load_family(ModelOptions(str(folder)), PromptOptions(clip_skip, length, weighted_captions=True))
    prompts = ["a cat (sleeping:1.4), " + "dog, " * 60, "[x]"]
    with torch.no_grad():
        ours = family.encode_prompts(prompts).hidden_states
        tokens = family.tokenizer.encode(prompts, PromptOptions(max_token_length=length), weighted=True)
        assert tokens.weights.max() == pytest.approx(1.4)
        pieces = []
        for ids, weights in zip(tokens.ids.unbind(1), tokens.weights.unbind(1), strict=True):
            output = tiny.text_encoder(ids, output_hidden_states=True)
            network = getattr(tiny.text_encoder, "text_model", tiny.text_encoder)
            states = network.final_layer_norm(output.hidden_states[-(clip_skip or 1)])
            pieces.append(states * weights[..., None])
        expected = torch.cat([pieces[0][:, :1], *(piece[:, 1:76] for piece in pieces), pieces[-1][:, 76:]], dim=1)
    assert ours.shape == (2, length + 2, 64)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_prompts_of_sample_images_are_whole_whatever_captions_are_cut_at(folder) -> None:
    prompts = ["cat " * 100, "dog"]
    with torch.no_grad():
        whole = load_family(ModelOptions(str(folder)), PromptOptions(max_token_length=150)).encode_prompts(prompts)
        family = load_family(ModelOptions(str(folder)), PromptOptions(max_token_length=75))
        drawn = family.encode_prompts(prompts, weighted=False).hidden_states
    assert torch.equal(drawn, whole.hidden_states) and drawn.shape[1] == 152


def test_a_layer_that_the_encoder_does_not_have_is_refused(folder) -> None:
    with pytest.raises(UserError, match="--clip_skip 3: the text encoder .* has 2 layers"):
        load_family(ModelOptions(str(folder)), PromptOptions(clip_skip=3))


@pytest.mark.parametrize("value", [76, "76", 75.5, True, "many", [75]])
def test_other_lengths_are_refused(value) -> None:
    with pytest.raises(ValueError, match="one of 75, 150, 225"):
        parse_token_length(value)
