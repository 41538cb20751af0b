"""If this fails, cleaning changes captions and tags in another way than its rules say."""

import json
import re
from pathlib import Path

import pytest

from finetune.clean_captions_and_tags import RULES
from library.cli.documents import parse_toml
from library.cli.errors import UserError
from library.metadata.cleaning import clean_caption, clean_tags
from library.metadata.cleaning_rules import CleaningRules, make_rules, read_rules

CASES = json.loads((Path(__file__).parent / "reference_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "clean"), [("tags", clean_tags), ("captions", clean_caption)])
def test_the_table_cleans_what_other_programs_clean(kind, clean):
    rules = make_rules(RULES, "RULES")
    assert [clean(text, rules) for text, _ in CASES[kind]] == [cleaned for _, cleaned in CASES[kind]]


def test_tags_that_are_faces_keep_their_underscores():
    rules = make_rules(RULES, "RULES")
    assert clean_tags("@_@, black_hair, |_|, x_x", rules) == "@_@, black hair, |_|, x_x"
    assert clean_tags("x_x, a_b", CleaningRules(replace_underscores=True)) == "x x, a b"
    assert clean_tags("x_x, a_b", CleaningRules(keep_underscores=("x_x",))) == "x_x, a_b"


def test_tags_of_one_person_stay_where_only_one_is_there_or_only_one_tag_says_it():
    rules = CleaningRules(several_people=("2girls",), describe_one=("red hair|blue hair", "ponytail"))
    assert clean_tags("1girl, red hair, blue hair, ponytail", rules) == "1girl, red hair, blue hair, ponytail"
    assert clean_tags("red hair, blue hair, 2girls, ponytail", rules) == "2girls, ponytail"


def test_a_replacement_by_a_longer_text_ends():
    assert clean_caption("a girl", CleaningRules(caption_replacements=(("girl", "tall girl"),))) == "a tall girl"


def test_rules_of_a_file_replace_all_of_the_table(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text('caption_replacements = [["dog", "sks dog"]]\ngeneral = ["[a-z]+"]\n')
    rules = read_rules(str(path), "--rules")
    assert clean_caption("an anime lady and a dog", rules) == "an anime lady and a sks dog"
    assert clean_tags("dog, big dog, a_b, rating:safe", rules) == "big dog, a_b, rating:safe"


def test_everything_wrong_in_a_file_of_rules_is_named(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(
        'generl = ["a"]\ncut_from = ["(a"]\nreplace_underscores = "yes"\ncaption_replacements = [["a"]]\n'
        "several_people = [1]\n"
    )
    with pytest.raises(UserError) as caught:
        read_rules(str(path), "--rules")
    text = str(caught.value)
    assert "generl is not a rule" in text and "did you mean general?" in text
    assert "cut_from has '(a', which is not a regular expression" in text
    for name in ("replace_underscores", "caption_replacements", "several_people"):
        assert f"rules.toml: {name}" in text


def test_the_table_in_the_documentation_is_that_of_the_script():
    page = (Path(__file__).parents[2] / "docs" / "finetune_scripts.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert parse_toml(text, "finetune_scripts.md", "docs/") == RULES
