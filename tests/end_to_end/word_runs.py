"""Runs of `train_textual_inversion.py` on the quickstart's model and images."""

from __future__ import annotations

from pathlib import Path

from accelerate.state import AcceleratorState

import train_textual_inversion
from library.models.text.embedding_files import EmbeddingVectors, read_embedding
from tests.end_to_end.runs import arguments, copy_images

WORD = "<fox>"


def copy_with_word(folder: Path, count: int = 5) -> Path:
    """Images whose captions hold the word."""
    for caption in copy_images(folder, count).rglob("*.txt"):
        caption.write_text(caption.read_text().replace("shs fox", WORD))
    return folder


def word_arguments(data: Path | None, output: Path, **overrides) -> list[str]:
    usual = {"token_string": WORD, "max_train_steps": 4, "learning_rate": 1e-2, "save_model_as": "safetensors"}
    return arguments(data, output, **{**usual, **overrides})


def train_word(data: Path | None, output: Path, **overrides) -> EmbeddingVectors:
    """Runs in this process, as if in one of its own; gives the word of the last save."""
    AcceleratorState._reset_state(reset_partial_state=True)
    train_textual_inversion.train(word_arguments(data, output, **overrides))
    return read_embedding(output / f"run.{overrides.get('save_model_as', 'safetensors')}")
