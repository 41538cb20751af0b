"""Tiny models of the captioning and tagging scripts, with files as the real ones have them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

TAGGER_SIZE = 8
# tags as a tagger's list has them, each with its category and the function of the image that the model computes for it:
# the mean of a channel, or one pixel's channel (y, x, channel), of the model's input: BGR
TAGGER_TAGS = [
    ("general", 9, "none"),
    ("explicit", 9, "all"),
    ("blue_mean", 0, 0),
    ("green_mean", 0, 1),
    ("red_mean", 0, 2),
    ("^_^", 0, (0, 0, 0)),
    ("centre_blue", 0, (4, 4, 0)),
    ("centre_red", 0, (4, 4, 2)),
    ("edge_red", 0, (4, 0, 2)),
    ("rei_(series_a)", 4, (4, 4, 1)),
]


def write_tagger(folder: Path, *, batch: int | str = "N", size: int = TAGGER_SIZE) -> Path:
    """model.onnx, whose probabilities are known functions of the pixels, and selected_tags.csv."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.zeros((size, size, 3, len(TAGGER_TAGS)), np.float32)
    for index, (_, _, what) in enumerate(TAGGER_TAGS):
        if isinstance(what, tuple):
            weights[(*what, index)] = 1
        elif isinstance(what, int):
            weights[:, :, what, index] = 1 / size**2
        elif what == "all":
            weights[:, :, :, index] = 1 / (3 * size**2)
    weights = weights.reshape(-1, len(TAGGER_TAGS)) / 255
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, size, size, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, len(TAGGER_TAGS)])],
        [
            numpy_helper.from_array(np.array([-1, size * size * 3], np.int64), "shape"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    with open(folder / "selected_tags.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([1000 + index, name, category, 5] for index, (name, category, _) in enumerate(TAGGER_TAGS))
    return folder


WORDS = [
    "a", "an", "the", "dog", "cat", "man", "woman", "red", "green", "blue", "big", "small", "sits", "runs", "on", "in",
    "under", "with", "table", "tree", "words", "stop", "here", "and",
]  # fmt: skip
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
_PAD, _START, _END, _DECODE = (_SPECIAL.index(name) for name in ("[PAD]", "[CLS]", "[SEP]", "[DEC]"))
IMAGE_SIZE = 32


def write_blip(folder: Path) -> Path:
    """A tiny BLIP with random weights, whose captions depend on the image, as transformers writes it."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    tokens = {"vocab_size": len(_SPECIAL) + len(WORDS), "bos_token_id": _DECODE, "eos_token_id": _END,
              "pad_token_id": _PAD, "sep_token_id": _END}  # fmt: skip
    config = BlipConfig(
        text_config={**size, **tokens, "max_position_embeddings": 80, "projection_dim": 32},
        vision_config={**size, "image_size": IMAGE_SIZE, "patch_size": 16, "projection_dim": 32},
        projection_dim=32,
    )
    model = _random(BlipForConditionalGeneration, config)
    processor = BlipProcessor(
        BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}), _tokenizer(folder)
    )
    return _save(folder, model, processor)


def write_git(folder: Path) -> Path:
    """A tiny GIT with random weights, as transformers writes it."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = GitConfig(
        vision_config={**size, "image_size": IMAGE_SIZE, "patch_size": 16},
        **size,
        vocab_size=len(_SPECIAL) + len(WORDS),
        bos_token_id=_START,
        eos_token_id=_END,
        pad_token_id=_PAD,
        max_position_embeddings=80,
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size=side, crop_size=side)
    return _save(folder, _random(GitForCausalLM, config), GitProcessor(image_processor, _tokenizer(folder)))


def _tokenizer(folder: Path):
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*_SPECIAL, *WORDS]))
    return BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")


def _random(model_class, config):
    import torch

    torch.manual_seed(3)
    model = model_class(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # large ones, so that words differ from image to image
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def _save(folder: Path, model, processor) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
