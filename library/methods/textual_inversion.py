"""Textual inversion, the method of `train_textual_inversion.py`: trains one embedding; the model is frozen.

"An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion" (Gal et al., 2208.01618);
with vectors for each cross-attention layer "P+: Extended Textual Conditioning in Text-to-Image Generation" (Voynov et
al., 2303.09522).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError, plural
from library.data.randomness import derive_seed
from library.methods.options import TextualInversionOptions
from library.models.family import ModelFamily
from library.models.text.embedding_files import EmbeddingVectors, read_embedding, write_embedding
from library.models.text.token_embedding import TokenEmbedding
from library.training.method import ParamGroup
from library.training.step_plan import Position

logger = logging.getLogger(__name__)

_ANOTHER_RUN = "give the same --token_string, --num_vectors_per_token and --xti as the run that saved it"


class TextualInversion:
    """An embedding beside the text encoder's token table; implements `library.training.method.TrainingMethod`."""

    trains_text_encoders = True  # gradients pass through it to the embedding's vectors
    trained_parts: frozenset[str] = frozenset()
    architecture_suffix = "/textual-inversion"

    def __init__(self, options: TextualInversionOptions):
        """Reads `--weights`. Raises `UserError` for a file that cannot be used."""
        assert options.token_string is not None, "it is required"
        self._options = options
        self._text = options.token_string
        self.ending = f".{options.save_model_as}"
        self._initial = None if options.weights is None else _read_initial(options)
        self._layers: tuple[str, ...] = ()
        self._embeddings: nn.ModuleDict  # a `TokenEmbedding` for each token table
        self._learning_rate = 0.0

    def attach(self, family: ModelFamily, *, seed: int, default_learning_rate: float, checkpointing: bool) -> None:
        """Adds the token to the model. Raises `UserError` for a token of its vocabulary, or vectors that do not fit."""
        self._learning_rate = default_learning_rate
        if self._options.xti:
            self._layers = family.cross_attention_layers()
            logger.info(
                "separate vectors for each of %d cross-attention layers: %s", len(self._layers), ", ".join(self._layers)
            )
        num_layers = len(self._layers) or 1
        if self._initial is not None:
            tables = _checked_initial(self._initial, family, self._layers, f"--weights {self._options.weights}")
        else:
            tables = _first_vectors(self._options, family, seed)
        embeddings = {
            name: TokenEmbedding(self._text, vectors.expand(num_layers, -1, -1)) for name, vectors in tables.items()
        }
        family.add_token(self._text, embeddings)
        self._embeddings = nn.ModuleDict(embeddings)
        num_vectors = next(iter(embeddings.values())).num_vectors
        if num_vectors > 1:
            logger.info("%s has %d vectors, and takes as many tokens of a prompt", self._text, num_vectors)

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("word", list(self._embeddings.parameters()), self._learning_rate)]

    def trainable_modules(self) -> list[nn.Module]:
        return [self._embeddings]

    def on_epoch_start(self, epoch: int) -> None: ...

    def on_step_start(self, step: int) -> None: ...

    def after_update(self) -> None: ...

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str], position: Position) -> None:
        tables = {name: each.vectors.detach() for name, each in self._named_embeddings()}
        embedding = EmbeddingVectors(tables, self._layers)
        with atomic_path(path) as temporary:
            write_embedding(
                temporary, embedding, name=self._text, dtype=dtype, metadata=metadata, step=position.global_step
            )

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {self._state_name(name): each.vectors.detach() for name, each in self._named_embeddings()}

    def _named_embeddings(self) -> Iterator[tuple[str, Any]]:
        yield from self._embeddings.items()

    def _state_name(self, table: str) -> str:
        return self._text if len(self._embeddings) == 1 else f"{self._text}/{table}"

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises `UserError` for the state of another token, or of another number of vectors."""
        own = self.state_dict()
        if set(state) != set(own):
            raise UserError(f"the state to resume from is not of {self._text} but of {', '.join(state)}", _ANOTHER_RUN)
        for name, vectors in own.items():
            if state[name].shape != vectors.shape:
                raise UserError(
                    f"the state to resume from has vectors of shape {tuple(state[name].shape)}, not"
                    f" {tuple(vectors.shape)} (layers, vectors, width)",
                    _ANOTHER_RUN,
                )
        with torch.no_grad():
            for name, vectors in own.items():
                vectors.copy_(state[name])

    def curves(self) -> dict[str, float]:
        return {}

    def metadata(self) -> dict[str, str]:
        options = self._options
        return {
            "ss_token_string": self._text,
            "ss_num_vectors_per_token": str(next(iter(self._named_embeddings()))[1].num_vectors),
            "ss_init_word": str(options.init_word),
            "ss_use_object_template": str(options.use_object_template),
            "ss_use_style_template": str(options.use_style_template),
            "ss_xti": str(options.xti),
        }

    def usage_hint(self, path: Path) -> str:
        if self._options.xti:
            return f"train it further with --xti --weights {path}; few programs read vectors for each layer"
        return (
            "put it into the embeddings folder of your image program (the file name is its token); or in Diffusers:"
            f" pipe.load_textual_inversion({str(path)!r}, token={self._text!r})"
        )


def _read_initial(options: TextualInversionOptions) -> EmbeddingVectors:
    assert options.weights is not None
    try:
        embedding = read_embedding(Path(options.weights))
    except UserError as error:
        raise UserError(f"--weights {error.message}", error.hint) from error
    num_vectors, wanted = embedding.vectors.shape[1], options.num_vectors_per_token
    if wanted is not None and wanted != num_vectors:
        raise UserError(
            f"--num_vectors_per_token {wanted}, but --weights {options.weights} holds {num_vectors}",
            "leave out --num_vectors_per_token",
        )
    if embedding.layers and not options.xti:
        raise UserError(
            f"--weights {options.weights} has separate vectors for"
            f" {plural(len(embedding.layers), 'cross-attention layer')}",
            "give --xti too",
        )
    if options.init_word is not None:
        logger.warning("--init_word is not used: the vectors are initialised from --weights")
    return embedding


def _checked_initial(
    initial: EmbeddingVectors, family: ModelFamily, layers: tuple[str, ...], source: str
) -> dict[str, torch.Tensor]:
    """Vectors of `--weights` in the order of the model's layers, if they fit it: (layers or 1, vectors, width)."""
    own = family.token_vectors("a")
    if set(initial.tables) != set(own):
        raise UserError(
            f"{source} has vectors for {plural(len(initial.tables), 'text encoder')}, the model has {len(own)}",
            "give a file made for this kind of model",
        )
    for name, vectors in initial.tables.items():
        width, expected = vectors.shape[-1], own[name].shape[-1]
        if width != expected:
            raise UserError(
                f"{source} has vectors of width {width}, the model's text encoder has {expected}",
                "give a file made for this kind of model: SD 1.x has width 768, SD 2.x has 1024",
            )
    if not initial.layers:
        return dict(initial.tables)  # the same for all layers
    if set(initial.layers) != set(layers):
        raise UserError(
            f"{source} has vectors for {plural(len(initial.layers), 'layer')}, the model's U-Net has {len(layers)}:"
            f" {', '.join(layers)}",
            "give a file made for this kind of model",
        )
    order = [initial.layers.index(name) for name in layers]
    return {name: vectors[order] for name, vectors in initial.tables.items()}


def _first_vectors(options: TextualInversionOptions, family: ModelFamily, seed: int) -> dict[str, torch.Tensor]:
    """(1, vectors, width): those of the tokens of `--init_word`, repeated, or random ones like the vocabulary's."""
    num_vectors = options.num_vectors_per_token or 1
    if options.init_word is None:
        logger.info("without --init_word the vectors of %s are initialised at random", options.token_string)
        tables = family.token_vectors()
        keys = {name: ("new word", seed) if len(tables) == 1 else ("new word", seed, name) for name in tables}
        return {name: _random_vectors(table, num_vectors, derive_seed(*keys[name])) for name, table in tables.items()}
    tokens = family.token_vectors(options.init_word)
    num_tokens = len(next(iter(tokens.values())))
    if num_tokens != num_vectors:
        logger.info(
            "--init_word %r has %s for %s: %s",
            options.init_word, plural(num_tokens, "token"), plural(num_vectors, "vector"),
            "the last are not used" if num_tokens > num_vectors else "they are repeated",
        )  # fmt: skip
    chosen = torch.arange(num_vectors) % num_tokens
    return {name: vectors.cpu()[chosen][None] for name, vectors in tokens.items()}


def _random_vectors(table: torch.Tensor, num_vectors: int, seed: int) -> torch.Tensor:
    """(1, vectors, width) with the mean and deviation of the table's (tokens, width)."""
    noise = torch.randn((num_vectors, table.shape[-1]), generator=torch.Generator().manual_seed(seed))
    return (table.mean(dim=0).cpu() + table.std(dim=0).cpu() * noise)[None]
