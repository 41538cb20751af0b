"""If these fail, images get other tags than the options ask for, or in another order."""

import pytest

from library.captioning.tagging.options import TagOptions, parse_replacements, replacement_pairs
from library.captioning.tagging.tag_list import read_tag_list
from library.captioning.tagging.tag_selection import Tag, append_tags, make_rules, select_tags
from library.cli.errors import UserError

TAGS = [
    Tag("safe", "rating"),
    Tag("explicit", "rating"),
    Tag("1girl", "general"),
    Tag("long_hair", "general"),
    Tag("o_o", "general"),
    Tag("(o)_(o)", "general"),
    Tag("rei_(series_a)", "character"),
    Tag("best_quality", "quality"),
    Tag("poor_quality", "quality"),
    Tag("someone", "artist"),
]
PROBABILITIES = [0.2, 0.1, 0.9, 0.5, 0.6, 0.7, 0.4, 0.1, 0.3, 0.36]
USUAL = ["1girl", "long_hair", "o_o", "(o)_(o)", "rei_(series_a)", "someone"]  # above 0.35, in the model's order


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, USUAL),
        ({"thresh": 0.6}, ["1girl", "o_o", "(o)_(o)"]),
        ({"thresh": 0.5}, ["1girl", "long_hair", "o_o", "(o)_(o)"]),  # at least, not above
        ({"general_threshold": 0.8}, ["1girl", "rei_(series_a)", "someone"]),
        ({"character_threshold": 0.5}, ["1girl", "long_hair", "o_o", "(o)_(o)", "someone"]),
        ({"artist_threshold": 0.5}, USUAL[:-1]),
        ({"undesired_tags": "long hair, o_o,"}, ["1girl", "(o)_(o)", "rei_(series_a)", "someone"]),
        ({"remove_underscore": True}, ["1girl", "long hair", "o_o", "(o)_(o)", "rei (series a)", "someone"]),
        ({"use_rating_tags": True}, ["safe", *USUAL]),
        ({"use_rating_tags_as_last_tag": True}, [*USUAL, "safe"]),
        ({"use_rating_tags": True, "undesired_tags": "safe"}, USUAL),
        ({"use_quality_tags": True}, ["poor_quality", *USUAL]),
        ({"use_quality_tags_as_last_tag": True, "use_rating_tags": True}, ["safe", *USUAL, "poor_quality"]),
        ({"character_tags_first": True}, ["rei_(series_a)", *USUAL[:4], "someone"]),
        ({"character_tag_expand": True}, [*USUAL[:4], "rei", "series_a", "someone"]),
        ({"always_first_tags": "o_o,2girls, long hair", "use_rating_tags": True},
         ["o_o", "long_hair", "safe", "1girl", "(o)_(o)", "rei_(series_a)", "someone"]),
        ({"tag_replacement": "long hair,hair\\, long;1girl,someone"},
         ["someone", "hair, long", "o_o", "(o)_(o)", "rei_(series_a)"]),
    ],
)  # fmt: skip
def test_the_tags_of_an_image(options, expected):
    assert select_tags(PROBABILITIES, make_rules(TAGS, TagOptions(**options), ", ")) == expected


def test_undesired_tags_may_be_separated_as_captions_are():
    rules = make_rules(TAGS, TagOptions(undesired_tags="1girl; someone"), "; ")
    assert select_tags(PROBABILITIES, rules) == USUAL[1:-1]


def test_replacements_are_pairs():
    assert replacement_pairs(r"a,b;c\,d , e\;f;") == [["a", "b"], ["c,d", "e;f"]]
    with pytest.raises(ValueError, match="pairs such as"):
        parse_replacements("a,b;c")


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("", "a b, c"), ("my own, c", "my own, c, a b"), ("a_b, c", "a_b, c"), ("one\ntwo", "one\ntwo, a b, c")],
)
def test_appending_keeps_what_is_there_and_repeats_nothing(existing, expected):
    assert append_tags(existing, ["a b", "c"], ", ") == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("tag_id,name,category,count\n1,1girl,0,5\n2,safe,9,5\n3,rei,4,1\n4,x,3,1\n",
         "general rating character copyright"),
        ("category,count,name\ngeneral,5,1girl\nRating,5,safe\ncharacter,1,rei\nmodel,1,x\n",
         "general rating character model"),
        ("\ufeffid;tag;category\r\n1;1girl;0.0\r\n2;safe;9.0\r\n3;rei;4.0\r\n4;x;7\r\n", "general rating character 7"),
        ('name,description\n1girl,"one, alone"\nsafe,\nrei,\nx,\n', "general general general general"),
    ],
)  # fmt: skip
def test_the_columns_of_a_tag_list_are_found_by_name(content, expected, tmp_path):
    path = tmp_path / "selected_tags.csv"
    path.write_text(content, encoding="utf-8", newline="")
    names = ("1girl", "safe", "rei", "x")
    assert read_tag_list(str(path)) == [Tag(*each) for each in zip(names, expected.split(), strict=True)]


@pytest.mark.parametrize(
    ("content", "named"),
    [("1girl,0\n", "no column of names"), ("name,category\na,0\nb\n", "line 3"), ("", "first line is")],
)
def test_a_file_that_is_no_tag_list_is_named(content, named, tmp_path):
    path = tmp_path / "selected_tags.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=named):
        read_tag_list(str(path))
