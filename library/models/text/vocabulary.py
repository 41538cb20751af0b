"""Look-ups in CLIP's vocabulary without a tokenizer. Standard library only, so that option checks are instant."""

from __future__ import annotations

import json
from pathlib import Path

_VOCABULARY = Path(__file__).parent / "clip_vocabulary" / "vocab.json"
_END_OF_WORD = "</w>"


def is_one_token(text: str) -> bool:
    """Whether the vocabulary of Stable Diffusion 1.x and 2.x has the text as one token, whole or as part of words."""
    vocabulary = json.loads(_VOCABULARY.read_text(encoding="utf-8"))
    return any(form in vocabulary for form in (text, text.lower(), text.lower() + _END_OF_WORD))
