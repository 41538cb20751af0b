"""If these fail, a prompts file means something else than its writer thinks, or a mistake in it costs a run."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from library.cli.errors import UserError, UserErrors
from library.data.records import MicroBatch
from library.methods.concepts.data import draw_batch
from library.methods.concepts.entries import ConceptEntry
from library.methods.concepts.prompts_file import read_prompts_file


@pytest.fixture
def read(tmp_path):
    def read(text: str, name: str = "prompts.toml", resolution: int = 512) -> tuple[ConceptEntry, ...]:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return read_prompts_file(str(path), resolution=resolution)

    return read


def test_what_an_entry_leaves_out_follows_from_the_rest(read):
    """A concept is erased to what the model draws without a prompt, as in the paper."""
    (entry,) = read('[[prompts]]\ntarget = "van gogh"\n')
    assert entry == ConceptEntry("van gogh", "van gogh", "", "", "erase", 1.0, 512, False, 1, 1.0, 1.0)
    (entry,) = read('target = "art"\npositive = "van gogh"\nunconditional = "blurry"\naction = "enhance"\n')
    assert (entry.positive, entry.unconditional, entry.neutral) == ("van gogh", "blurry", "blurry")
    assert entry.direction == 1.0
    (entry,) = read('[[prompts]]\ntarget = "cat"\npositive = ""\nneutral = "pet"\n', resolution=1024)
    assert (entry.positive, entry.unconditional, entry.neutral, entry.resolution) == ("", "", "pet", 1024)


def test_the_plan_says_what_an_entry_does(read):
    """With a guidance scale of 0 nothing is erased: the target is drawn to `neutral`, or kept if that is the same."""
    told = read(
        '[[prompts]]\ntarget = "frog"\n[[prompts]]\ntarget = "cat"\nneutral = "cat"\nguidance_scale = 0\n'
        '[[prompts]]\ntarget = "art"\nneutral = "photo"\nguidance_scale = 0\nmultiplier = -1\n'
    )
    assert [entry.description for entry in told] == ["erase frog", "keep cat", "draw art as 'photo' at -1"]


SLIDER = {"target_class": "person", "positive": "old person", "negative": "young person"}


def test_a_slider_stands_for_both_directions(read):
    found = read(json.dumps({"targets": [{**SLIDER, "multiplier": 2, "weight": 0.5}], "guidance_scale": 3}), "a.yaml")
    shared = {"target": "person", "neutral": "person", "positive": "old person", "unconditional": "young person"}
    more = {"guidance_scale": 3.0, "resolution": 512, "dynamic_resolution": False, "batch_size": 1, "weight": 0.5}
    assert found == (
        ConceptEntry(**shared, action="enhance", multiplier=2.0, **more),
        ConceptEntry(**shared, action="erase", multiplier=-2.0, **more),
    )
    assert [entry.direction for entry in found] == [3.0, -3.0]


def test_neutrals_stand_before_the_class_one_by_one(read):
    found = read(json.dumps([{"targets": [{**SLIDER, "neutrals": ["a photo of a", "a drawing of a"]}]}]), "a.yml")
    texts = ["a photo of a person", "a photo of a person", "a drawing of a person", "a drawing of a person"]
    assert [entry.target for entry in found] == [entry.neutral for entry in found] == texts
    assert [entry.multiplier for entry in found] == [1.0, -1.0, 1.0, -1.0]
    assert {(entry.positive, entry.unconditional) for entry in found} == {("old person", "young person")}
    (first, _) = read(json.dumps({"targets": SLIDER, "neutral": "a happy"}), "a.yaml")
    assert first.target == "a happy person"


def test_toml_and_yaml_say_the_same(read):
    toml = 'resolution = 64\n[[prompts]]\ntarget = "frog"\nweight = 2\n[[prompts]]\ntarget = "cat"\nresolution = 128\n'
    yaml = "resolution: 64\nprompts:\n- target: frog\n  weight: 2\n- {target: cat, resolution: 128}\n"
    listed = "- {target: frog, weight: 2, resolution: 64}\n- {target: cat, resolution: 128}\n"
    assert read(toml) == read(yaml, "a.yaml") == read(listed, "b.yml")
    assert [entry.resolution for entry in read(toml)] == [64, 128]


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ('[[prompts]]\npositive = "frog"\n', "a.toml", ["prompts[0] has no target"]),
        ('[[prompts]]\ntarget = " "\n', "a.toml", ["prompts[0]: target", "a text in quotes"]),
        ('[[prompts]]\ntarget = "frog"\ntagret = "frog"\n', "a.toml", ["unknown key tagret", "did you mean target?"]),
        ('guidance = 2\n[[prompts]]\ntarget = "a"\n', "a.toml", ["the file: unknown key guidance", "guidance_scale"]),
        ('[[prompts]]\ntarget = "a"\naction = "remove"\n', "a.toml", ["action = 'remove'", '"erase" or "enhance"']),
        ('[[prompts]]\ntarget = "a"\nresolution = 100\n', "a.toml", ["resolution = 100", "a multiple of 8"]),
        ('[[prompts]]\ntarget = "a"\nmultiplier = 0\n', "a.toml", ["multiplier = 0", "nothing is trained"]),
        ('[[prompts]]\ntarget = "a"\nguidance_scale = nan\n', "a.toml", ["guidance_scale = nan", "a number"]),
        ('target = "a"\nresolution = 56\ndynamic_resolution = true\n', "a.toml", ["56 pixels has no sizes"]),
        ("- target: no\n", "a.yaml", ["target = False", "a text in quotes"]),
        ("- target: a\n  target: b\n", "a.yaml", ["target is there twice", "line 2, column 3"]),
        ("- target: [a\n", "a.yaml", ["is not valid YAML", "line 2"]),
        ("- frog\n", "a.yaml", ["prompts[0] is not a table"]),
        ("frog", "a.yaml", ["holds no entries"]),
        ("", "a.toml", ["holds no entry"]),
        ("a frog --w 64", "a.txt", ["a.txt is neither .toml nor .yaml"]),
        ('targets = [{target_class = "a", positive = "b"}]', "a.toml", ["targets[0] has no negative"]),
        ('targets = [{target_class = "a", positive = "b", negative = "", action = "erase"}]', "a.toml",
         ["targets[0]: unknown key action"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(read, text, name, says):
    with pytest.raises(UserError) as caught:
        read(text, name)
    assert not isinstance(caught.value, UserErrors)
    assert all(part in str(caught.value) for part in says), str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_all_mistakes_are_said_together(read):
    with pytest.raises(UserErrors) as caught:
        read('[[prompts]]\ntarget = 3\nweight = -1\n[[prompts]]\nneutral = "a"\n')
    assert [error.message.split(", ")[1] for error in caught.value.errors] == [
        "prompts[0]: target = 3 is not valid", "prompts[0]: weight = -1 is not valid", "prompts[1] has no target",
    ]  # fmt: skip


def test_sides_of_a_dynamic_resolution_are_multiples_of_64_from_half_to_whole():
    entry = ConceptEntry("a", "a", "", "", resolution=320, dynamic_resolution=True)
    drawn = [draw_batch([entry], MicroBatch(0, index, 0, (), index), 3, 8) for index in range(600)]
    assert {size for batch in drawn for size in batch.size} == {192, 256, 320}
    counts = Counter(batch.size for batch in drawn)
    assert len(counts) == 9 and min(counts.values()) > 600 / 9 / 2  # each side by itself
    steps = Counter(batch.num_denoised for batch in drawn)
    assert set(steps) == set(range(1, 8)) and min(steps.values()) > 600 / 7 / 2


def test_draws_depend_on_seed_epoch_and_index_alone():
    entries = [ConceptEntry(name, name, "", "") for name in "abcd"]

    def drawn(seed: int, epoch: int, indices: range) -> list[tuple[str, int]]:
        batches = [draw_batch(entries, MicroBatch(epoch, index, 0, (), index), seed, 40) for index in indices]
        return [(batch.entry.target, batch.num_denoised) for batch in batches]

    assert drawn(1, 0, range(50))[20:] == drawn(1, 0, range(20, 50))
    assert drawn(1, 0, range(50)) != drawn(2, 0, range(50)) and drawn(1, 0, range(50)) != drawn(1, 1, range(50))
    assert {target for target, _ in drawn(1, 0, range(50))} == set("abcd")
