"""Captioning models of transformers, BLIP and GIT: found, loaded, and asked for the captions of a batch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration, GitForCausalLM
from transformers.utils import logging as transformers_logging

from library.captioning.caption_options import DEFAULT_BLIP
from library.cli.errors import UserError, first_line
from library.data.images.decoding import decode_image
from library.models.devices import choose_device
from library.models.weights.hub_download import hub_errors
from library.models.weights.path_checks import is_hub_id

logger = logging.getLogger(__name__)

Kind = Literal["blip", "git"]

_CLASSES = {"blip": BlipForConditionalGeneration, "git": GitForCausalLM}
_SCRIPTS = {"blip": "make_captions.py", "git": "make_captions_by_git.py"}
# files of weights, the best first, and with each the one that lists its parts
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_OLD_BLIP = "model_large_caption.pth"  # the same model in the form of BLIP's own repository


@dataclass(frozen=True)
class CaptionModel:
    """A captioning model on its device, with what turns images into its input and its output into text."""

    kind: Kind
    model: Any
    image_processor: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    def load(self, path: str) -> torch.Tensor:
        """An image as the model takes it: (3, H, W). Raises `UserError` if it cannot be read."""
        image = Image.fromarray(decode_image(path))
        return self.image_processor(images=image, return_tensors="pt")["pixel_values"][0].to(self.dtype)

    @torch.inference_mode()
    def captions(self, images: Sequence[torch.Tensor], **generation: Any) -> list[str]:
        """The captions of images that `load` has loaded. `generation`: arguments of transformers' `generate`."""
        pixels = torch.stack(list(images)).to(self.device)
        if self.kind == "git":
            start = self.model.config.bos_token_id
            generation["input_ids"] = torch.full((len(images), 1), start, device=self.device)
        try:
            tokens = self.model.generate(pixel_values=pixels, **generation)
        except torch.OutOfMemoryError as error:
            raise UserError(f"not enough memory for {len(images)} images at once", "lower --batch_size") from error
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def load_caption_model(kind: Kind, name: str, flag: str, device: str | None) -> CaptionModel:
    """A model from a folder or the Hub. `flag`: of the option that names it.

    Raises `UserError` if it is not there and cannot be downloaded, or is no such model.
    """
    chosen = choose_device(device)
    folder = find_model(name, flag)
    _check_kind(folder, kind, f"{flag} {name}")
    dtype = torch.float16 if chosen.type == "cuda" else torch.float32
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = _CLASSES[kind].from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{flag} {name} cannot be loaded: {first_line(error)}", hint="copy or download the model again"
        ) from error
    _check_complete(report, f"{flag} {name}")
    return CaptionModel(kind, model.eval().to(chosen), image_processor, tokenizer, chosen, dtype)


def find_model(name: str, flag: str) -> Path:
    """The folder of a model: `name` itself, or that of the Hub's model in the cache, downloaded if need be."""
    if not Path(name).exists() and name.replace("\\", "/").rpartition("/")[2] == _OLD_BLIP:
        logger.info("%s %s: %s is the same model, in the form that is read here", flag, name, DEFAULT_BLIP)
        name = DEFAULT_BLIP
    if Path(name).is_file():
        raise UserError(f"{flag} {name} is a file", hint="give the folder of a model with its config.json")
    if Path(name).is_dir():
        return Path(name)
    if not is_hub_id(name):
        raise UserError(f"{flag} {name} does not exist", hint="give a folder, or OWNER/NAME of a model on the Hub")
    hint = (
        "give the path of a folder with its config.json, preprocessor_config.json, tokenizer files and"
        " model.safetensors, or connect to the network to download it"
    )
    with hub_errors(f"{flag} {name}", hint):
        return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt"]))
    for weights in _WEIGHTS[::2]:  # with its parts, where it comes in several
        if not _has_weights(folder):
            stem, _, ending = weights.rpartition(".")
            folder = Path(snapshot_download(name, allow_patterns=[weights, f"{stem}-*.{ending}"]))
    if not _has_weights(folder):
        raise FileNotFoundError(f"no weights of {name}")
    return folder


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHTS[::2]) or any(folder.glob("*-of-*"))


def _check_kind(folder: Path, kind: Kind, named: str) -> None:
    """Raises `UserError` if the folder is not that of a model of this kind."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise UserError(f"{named} has no config.json", hint="give the folder of a model of transformers") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{named}: its config.json cannot be read: {first_line(error)}", "download it again") from None
    if found != kind:
        other = f"use {_SCRIPTS[found]} for it" if found in _SCRIPTS else f"give a model of the kind {kind}"
        raise UserError(f"{named} is a model of the kind {found}, not {kind}", hint=other)


def _check_complete(report: Mapping[str, Any], named: str) -> None:
    """Raises `UserError` where weights are missing, which transformers would fill with random numbers."""
    wrong = sorted(map(str, [*report["missing_keys"], *report.get("mismatched_keys", ())]))
    if wrong:
        raise UserError(
            f"{named}: {len(wrong)} of its weights are missing or have another shape, the first is {wrong[0]}",
            hint="copy or download the model again",
        )
