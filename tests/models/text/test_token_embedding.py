"""If these fail, an embedding is not found in prompts, or training it changes the model too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel

from library.cli.errors import UserError
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.stable_diffusion.model import TABLE
from library.models.text.token_embedding import TokenEmbedding
from library.models.text.tokenizer import load_tokenizer

WORD_IDS = [60001, 60002]


@pytest.fixture
def tokenizer():
    return load_tokenizer(None, pads_with_end=True).with_token("<Fox>", WORD_IDS)


def test_the_word_becomes_the_tokens_of_its_vectors_wherever_it_stands(tokenizer):
    plain = load_tokenizer(None, pads_with_end=True)
    before, after = plain.token_ids("photo of"), plain.token_ids("dog")
    assert tokenizer.token_ids("photo of <Fox> dog <Fox>") == [*before, *WORD_IDS, *after, *WORD_IDS]
    assert tokenizer.token_ids("photo of <fox>dog") == [*before, *WORD_IDS, *after]
    assert tokenizer.count("photo of <FOX> dog") == 5
    tokens = tokenizer.encode(["a (<fox>:1.5)"], weighted=True)
    assert tokens.ids[0, 0, 2:4].tolist() == WORD_IDS
    assert tokens.weights[0, 0, :5].tolist() == [1, 1, 1.5, 1.5, 1]


def test_other_texts_are_read_as_before_and_the_first_tokenizer_stays(tokenizer):
    plain = load_tokenizer(None, pads_with_end=True)
    for text in ("a fox", "< fox >", "", "(a:1.2) <fo"):
        assert tokenizer.token_ids(text) == plain.token_ids(text)
    assert plain.token_ids("<Fox>") != WORD_IDS


@pytest.mark.parametrize(("text", "is_known"), [("fox", True), ("shs", True), ("ca", True), ("<fox>", False)])
def test_tokens_of_the_vocabulary_are_known(text, is_known):
    assert load_tokenizer(None, pads_with_end=True).knows(text) is is_known


def test_vectors_are_found_behind_the_table_and_gradients_reach_them_alone():
    """Against a table that really has the rows: same values, same gradients, none for other rows."""
    torch.manual_seed(3)
    table = nn.Embedding(10, 4).requires_grad_(False)
    embedding = TokenEmbedding("x", torch.randn(1, 2, 4))
    whole = torch.cat([table.weight, embedding.vectors[0].detach()]).requires_grad_()
    ids, weights = torch.tensor([[1, 10, 11, 9], [11, 11, 0, 2]]), torch.randn(2, 4, 4)
    assert embedding.attach(table) == range(10, 12)
    (table(ids) * weights).sum().backward()
    (whole[ids] * weights).sum().backward()
    assert torch.equal(table(ids), whole[ids])
    torch.testing.assert_close(embedding.vectors.grad[0], whole.grad[10:])
    assert table.weight.grad is None


def test_a_batch_without_the_word_gives_gradients_of_zero():
    """Else a caption that was dropped would end the run."""
    table = nn.Embedding(10, 4).requires_grad_(False)
    embedding = TokenEmbedding("x", torch.randn(1, 1, 4))
    embedding.attach(table)
    table(torch.tensor([[1, 2]])).sum().backward()
    assert torch.equal(embedding.vectors.grad, torch.zeros(1, 1, 4))


def load(folder):
    return load_family(ModelOptions(pretrained_model_name_or_path=str(folder)))


def test_the_encoder_reads_the_vectors_as_transformers_reads_rows_of_its_table(folder, tiny):
    """Both generations; transformers' own encoder with a table that was made larger."""
    family = load(folder)
    vectors = torch.randn(1, 2, 64) * 0.05
    family.add_token("<fox>", {TABLE: TokenEmbedding("<fox>", vectors)})
    found = family.encode_prompts(["a <fox> here"]).hidden_states
    ids = family.tokenizer.encode(["a <fox> here"]).ids[0]
    assert ids[0, 2:4].tolist() == [49408, 49409]
    larger = CLIPTextModel(tiny.text_encoder.config)
    larger.load_state_dict(tiny.text_encoder.state_dict())
    larger.resize_token_embeddings(49410, mean_resizing=False)
    with torch.no_grad():
        larger.get_input_embeddings().weight[49408:] = vectors[0]
        torch.testing.assert_close(found, larger.eval()(ids).last_hidden_state)


def test_nothing_but_the_embedding_is_trained(folder):
    family = load(folder)
    before = {name: tensor.clone() for name, tensor in every_tensor(family).items()}
    embedding = TokenEmbedding("<fox>", torch.randn(1, 1, 64) * 0.05)
    family.add_token(embedding.text, {TABLE: embedding})
    conditioning = family.encode_prompts(["a <fox>"])
    family.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning).sum().backward()
    assert embedding.vectors.grad.abs().sum() > 0
    after = every_tensor(family)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    parts = (family.unet, family.vae, *family.text_encoders)
    assert [name for part in parts for name, each in part.named_parameters() if each.grad is not None] == []


def every_tensor(family):
    parts = {"unet": family.unet, "vae": family.vae, "text": family.text_encoders[0]}
    return {f"{part}.{name}": each for part, module in parts.items() for name, each in module.state_dict().items()}


def test_a_word_of_the_vocabulary_is_refused(folder):
    with pytest.raises(UserError, match="fox is in the model's vocabulary already"):
        load(folder).add_token("fox", {TABLE: TokenEmbedding("fox", torch.zeros(1, 1, 64))})
