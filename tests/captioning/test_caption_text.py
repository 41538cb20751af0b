"""If this fails, --remove_words leaves made-up writing in captions, or takes what the image shows."""

import pytest

from library.captioning.caption_text import remove_writing


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man with the word nike on his shirt, smiling", "a man, smiling"),
        ("a red sign that says stop", "a red sign"),
        ("a woman in a dress with the words i love you", "a woman in a dress"),
        ("a book with the title my life, on a table", "a book, on a table"),
        ("the words stop here", "the words stop here"),
        ("a girl with long hair and a hat", "a girl with long hair and a hat"),
        ("a dog with a wordless look", "a dog with a wordless look"),
        ("a man reading a newspaper", "a man reading a newspaper"),
        ("that says stop", "that says stop"),
    ],
)
def test_writing_is_removed(caption, expected):
    assert remove_writing(caption) == expected
