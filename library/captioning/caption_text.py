"""What is done to a caption's text."""

from __future__ import annotations

import re

_SAYS = r"(?:that|which) (?:says?|reads?)|saying"
_NAMES = r"(?:words?|letters?|names?|numbers?|text|title|writing|phrase)"
_HAS = rf"(?:with|has|have|having|and|that has|using) (?:the |a |an )?{_NAMES}"
_WRITING = re.compile(rf"[ ,]*\b(?:{_SAYS}|{_HAS})\b[^,]*")


def remove_writing(caption: str) -> str:
    """A caption without what it says about writing in the image, which models of GIT often make up.

    "a man with the word nike on his shirt, smiling" -> "a man, smiling". A caption of nothing else stays as it is.
    """
    return _WRITING.sub("", caption).strip(" ,") or caption
