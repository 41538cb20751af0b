"""Prompts -> token ids of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from library.cli.errors import UserError

NUM_TOKENS = 77  # positions of CLIP's text encoders, first and last taken by the start and end tokens
SHIPPED_VOCABULARY = Path(__file__).parent / "clip_vocabulary"
_VOCABULARY_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
_HINT = "copy or download it again, or remove the folder: the usual vocabulary is then taken"
_OPEN_CLIP_PADDING = "!"  # token 0 of the vocabulary


@dataclass(frozen=True)
class PromptTokenizer:
    """CLIP's tokenizer with the padding that the model was trained with."""

    tokenizer: CLIPTokenizer
    pad_id: int

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids (B, 77) int64: start, tokens (75 at most, the rest is dropped), end, padding."""
        input_ids = torch.full((len(prompts), NUM_TOKENS), self.pad_id, dtype=torch.int64)
        for row, prompt in zip(input_ids, prompts, strict=True):
            tokens = self.tokenizer(prompt, truncation=True, max_length=NUM_TOKENS).input_ids
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return input_ids


def load_tokenizer(folder: Path | None, *, pads_with_end: bool) -> PromptTokenizer:
    """The tokenizer in `folder`, or the one that comes with this package when there is none.

    `pads_with_end`: SD 1.x pads with the end token, SD 2.x with "!", which is then a token of its own wherever it
    stands in a prompt. Raises `UserError` for a folder that holds no readable tokenizer.
    """
    folder = folder or SHIPPED_VOCABULARY
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARY_FILES):
        # without them transformers makes a tokenizer that knows no words
        raise UserError(f"{folder} holds neither vocab.json and merges.txt nor tokenizer.json", _HINT)
    settings = {} if pads_with_end else {"pad_token": _OPEN_CLIP_PADDING}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **settings)
        tokens = tokenizer("a").input_ids
    except Exception as error:  # the library behind it raises bare `Exception` for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} holds no readable tokenizer: {reason}", _HINT) from error
    if len(tokens) != 3 or tokens[1] == tokenizer.unk_token_id:
        raise UserError(f"{folder} holds no vocabulary of CLIP: it does not know the word 'a'", _HINT)
    pad_id = tokenizer.eos_token_id if pads_with_end else tokenizer.convert_tokens_to_ids(_OPEN_CLIP_PADDING)
    return PromptTokenizer(tokenizer, pad_id)
