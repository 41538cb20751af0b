"""CLIP's tokenizer: prompts -> token ids and weights, in chunks of 75 tokens."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from library.cli.errors import UserError, first_line
from library.models.options import PromptOptions
from library.models.text.prompt_weights import parse_prompt_weights

CHUNK_LENGTH = 75  # of the 77 positions of CLIP's text encoders; start and end token take the others
SHIPPED_VOCABULARY = Path(__file__).parent / "clip_vocabulary"
_VOCABULARY_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
_FINGERPRINTED = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json")
_HINT = "copy or download it again, or remove the folder to use the vocabulary of this program"
_OPEN_CLIP_PADDING = "!"  # token 0 of the vocabulary


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of B prompts in n chunks of 77: start, 75 tokens, end. Weights are None where all are 1."""

    ids: torch.Tensor  # (B, n, 77) int64; a single chunk can be shorter
    weights: torch.Tensor | None = None  # (B, n, 77) float32, 1 at start, end and padding


@dataclass(frozen=True)
class PromptTokenizer:
    """CLIP's tokenizer with the padding that the model was trained with."""

    tokenizer: CLIPTokenizer
    pad_id: int
    added_tokens: Mapping[int, tuple[int, ...]] = field(
        default_factory=dict
    )  # id of an added token -> ids that replace it
    fingerprint: str = ""  # of its vocabulary; empty for the one in this package

    def knows(self, token: str) -> bool:
        """Whether the text is one token of the vocabulary already, at the end of a word or within one."""
        vocabulary = self.tokenizer.get_vocab()
        return token in vocabulary or len(self.token_ids(token)) < 2

    def with_token(self, token: str, ids: Sequence[int]) -> PromptTokenizer:
        """A tokenizer with an added token, which becomes these ids: case-insensitive, anywhere in a text."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_tokens(token)
        number = int(tokenizer.convert_tokens_to_ids(token))
        return replace(self, tokenizer=tokenizer, added_tokens={**self.added_tokens, number: tuple(ids)})

    def encode(
        self,
        prompts: Sequence[str],
        options: PromptOptions | None = None,
        weighted: bool = False,
        *,
        truncates: bool = True,
    ) -> PromptTokens:
        """Token ids and, with `weighted`, the prompt weights given by brackets.

        Prompts are truncated to `max_token_length`; shorter ones are padded, with whole chunks of padding too. Without
        `truncates` there are as many chunks more as the longest one takes.
        """
        options = options or PromptOptions()
        parsed = [self._tokens(prompt, weighted) for prompt in prompts]
        num_chunks = options.max_token_length // CHUNK_LENGTH
        if not truncates:
            num_chunks = max(num_chunks, *(-(-len(ids) // CHUNK_LENGTH) for ids, _ in parsed))
        length = CHUNK_LENGTH
        if options.no_token_padding and num_chunks == 1:
            length = min(CHUNK_LENGTH, max(len(ids) for ids, _ in parsed))
        ids = torch.full((len(prompts), num_chunks, length + 2), self.pad_id, dtype=torch.int64)
        weights = torch.ones(ids.shape)
        for row, (tokens, factors) in enumerate(parsed):
            for chunk in range(num_chunks):
                part = slice(chunk * CHUNK_LENGTH, (chunk + 1) * CHUNK_LENGTH)
                here = [self.tokenizer.bos_token_id, *tokens[part], self.tokenizer.eos_token_id]
                ids[row, chunk, : len(here)] = torch.tensor(here)
                weights[row, chunk, 1 : len(here) - 1] = torch.tensor(factors[part])
        return PromptTokens(ids, weights if weighted else None)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, without start and end; brackets are plain text."""
        return self._tokens(text, False)[0]

    def count(self, prompt: str, weighted: bool = False) -> int:
        """The number of tokens of a prompt, without start and end, before truncation; weights do not count."""
        return len(self._tokens(prompt, weighted)[0])

    def counts(self, prompts: Sequence[str], weighted: bool = False) -> list[int]:
        """`count` of many prompts. Each of their words is tokenized once: CLIP's tokens do not span blanks."""
        if weighted or self.added_tokens:
            return [self.count(prompt, weighted) for prompt in prompts]
        words = list({word for prompt in prompts for word in prompt.split(" ") if word})
        tokens = self.tokenizer(words, add_special_tokens=False, verbose=False).input_ids if words else []
        lengths = {"": 0, **dict(zip(words, map(len, tokens), strict=True))}
        return [sum(lengths[word] for word in prompt.split(" ")) for prompt in prompts]

    def _tokens(self, prompt: str, weighted: bool) -> tuple[list[int], list[float]]:
        ids, factors = [], []
        for text, weight in parse_prompt_weights(prompt) if weighted else [(prompt, 1.0)]:
            found = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            part = [number for each in found for number in self.added_tokens.get(each, (each,))]
            ids += part
            factors += [weight] * len(part)
        return ids, factors


def load_tokenizer(folder: Path | None, *, pads_with_end: bool) -> PromptTokenizer:
    """The tokenizer in `folder`, or the one in this package for None.

    `pads_with_end`: SD 1.x pads with the end token, SD 2.x with "!", which is then a special token
    wherever it is in a prompt. Raises `UserError` for a folder that holds no readable tokenizer.
    """
    folder = folder or SHIPPED_VOCABULARY
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARY_FILES):
        # without them transformers makes a tokenizer with an empty vocabulary
        raise UserError(f"{folder} holds neither vocab.json and merges.txt nor tokenizer.json", _HINT)
    settings: dict[str, Any] = {} if pads_with_end else {"pad_token": _OPEN_CLIP_PADDING}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **settings)
        tokens = tokenizer("a").input_ids
    except Exception as error:  # the library behind it raises bare `Exception` for damaged files
        raise UserError(f"{folder} holds no readable tokenizer: {first_line(error)}", _HINT) from error
    if len(tokens) != 3 or tokens[1] == tokenizer.unk_token_id:
        raise UserError(f"{folder} does not hold the vocabulary of CLIP: it lacks the token 'a'", _HINT)
    pad_id = tokenizer.eos_token_id if pads_with_end else tokenizer.convert_tokens_to_ids(_OPEN_CLIP_PADDING)
    own, shipped = _fingerprint(folder), _fingerprint(SHIPPED_VOCABULARY)
    return PromptTokenizer(tokenizer, pad_id, fingerprint="" if own == shipped else own)


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _FINGERPRINTED:
        file = folder / name
        digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None}\n".encode())
    return digest.hexdigest()[:16]
