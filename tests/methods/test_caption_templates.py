"""If these fail, an embedding is trained with other captions than asked for, or with none that have its token."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.batches.items import draw_items
from library.data.captions import final_caption
from library.data.config.config import SubsetConfig
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.randomness import keyed_random
from library.data.records import StepCounter
from library.methods.caption_templates import OBJECT_TEMPLATES, STYLE_TEMPLATES, check_token_in_captions, with_templates


def drawn(subset, count=3000, caption="x"):
    outcomes = Counter(final_caption(caption, subset, keyed_random("test", number)) for number in range(count))
    return {text: number / count for text, number in outcomes.items()}


def test_a_template_stands_for_any_caption():
    """Measured elsewhere: outcomes of one and of three texts that replace all captions."""
    assert drawn(SubsetConfig("x", caption_templates=("template",))) == {"template": 1.0}
    found = drawn(SubsetConfig("x", caption_templates=("t1", "t2", "t3")))
    assert found == pytest.approx({"t1": 1 / 3, "t2": 1 / 3, "t3": 1 / 3}, abs=0.03)
    whole = SubsetConfig("x", caption_templates=("a, {b|c}",), caption_prefix="p", shuffle_caption=True)
    assert drawn(whole, 5) == {"a, {b|c}": 1.0}


def test_a_caption_that_is_dropped_is_not_replaced():
    subset = SubsetConfig("x", caption_templates=("template",), caption_dropout_rate=1.0)
    assert drawn(subset, 5, "sks") == {"": 1.0}


def test_the_lists_are_those_of_the_paper():
    """2208.01618: 27 of objects, 19 of styles, of which 17 differ."""
    assert (len(OBJECT_TEMPLATES), len(set(OBJECT_TEMPLATES))) == (27, 27)
    assert (len(STYLE_TEMPLATES), len(set(STYLE_TEMPLATES))) == (19, 17)
    assert all(each.count("{}") == 1 and each.endswith(" {}") for each in OBJECT_TEMPLATES + STYLE_TEMPLATES)


def make_data(folder: Path, captions: dict[str, str], **options):
    for name, caption in captions.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
        path.with_suffix(".txt").write_text(caption)
    described = {"train_data_dir": str(folder / "train"), "resolution": (64, 64), "caption_extension": ".txt"}
    return load_training_data(DatasetOptions(**described, **options))


CAPTIONS = {f"train/1_x/{number}.png": f"a <Fox> number {number}" for number in range(4)}


def captions_of_epoch(data, seed, epoch):
    clock = StepCounter(group_size=1, steps_per_epoch=data.num_micro_batches, num_steps=10)
    items = (
        draw_items(data.datasets[each.dataset_index], each, seed, clock) for each in data.batches_of_epoch(seed, epoch)
    )
    return {(item.latent_key.path, item.is_reg): item.caption for drawn in items for item in drawn}


def test_templates_are_drawn_by_place_and_regularisation_images_keep_their_captions(tmp_path):
    captions = {**CAPTIONS, "reg/1_x/r.png": "an animal"}
    plain = make_data(tmp_path, captions, reg_data_dir=str(tmp_path / "reg"))
    data = with_templates(plain, OBJECT_TEMPLATES, "<fox>")
    first, again, later = (captions_of_epoch(data, 1, epoch) for epoch in (0, 0, 1))
    assert first == again != later
    filled = {template.replace("{}", "<fox>") for template in OBJECT_TEMPLATES}
    for (_, is_reg), caption in first.items():
        assert caption == "an animal" if is_reg else caption in filled
    assert len(set(first.values())) > 2
    assert set(captions_of_epoch(plain, 1, 0).values()) == set(captions.values())


def test_held_out_images_have_one_template(tmp_path):
    data = with_templates(make_data(tmp_path, CAPTIONS, validation_split=0.5), STYLE_TEMPLATES, "<fox>")
    assert data.validation is not None
    for seed in range(3):
        assert set(captions_of_epoch(data.validation, seed, 0).values()) == {"a painting in the style of <fox>"}


def test_a_word_in_no_caption_is_an_error_with_count_and_examples(tmp_path):
    data = make_data(tmp_path, {"train/1_x/0.png": "a cat", "train/1_x/1.png": "a dog", "train/1_x/2.png": ""})
    with pytest.raises(UserError) as raised:
        check_token_in_captions(data, "<fox>", "--token_string")
    assert raised.value.message.startswith(
        "--token_string <fox> is in none of 3 captions, such as 0.png: 'a cat'; 1.png: 'a dog'; 2.png: ''"
    )
    assert "--use_object_template" in raised.value.hint


def test_a_word_in_some_captions_is_warned_of_and_in_any_case_of_letters_found(tmp_path, caplog):
    check_token_in_captions(make_data(tmp_path / "all", CAPTIONS), "<fox>", "--token_string")
    assert caplog.text == ""
    check_token_in_captions(
        make_data(tmp_path / "some", {**CAPTIONS, "train/1_x/9.png": "a cat"}), "<fox>", "--token_string"
    )
    assert "1 of 5 captions do not have the token <fox>, whose images do not train it: 9.png: 'a cat'" in caplog.text


def test_the_word_can_come_from_caption_prefix_and_not_from_regularisation_images(tmp_path):
    captions = {"train/1_x/0.png": "sits", "reg/1_x/r.png": "<fox>"}
    options = {"reg_data_dir": str(tmp_path / "reg")}
    check_token_in_captions(make_data(tmp_path, captions, caption_prefix="<fox>", **options), "<fox>", "--token_string")
    with pytest.raises(UserError, match="in none of 1 caption"):
        check_token_in_captions(make_data(tmp_path, captions, **options), "<fox>", "--token_string")
