"""How much of a captioning or tagging model's own speed is left when image files become caption files.

    python -m benchmarks.captioning [--model blip|git|tagger] [--num_images 8] [--size 1024] [--batch_size 1]

Makes images like photographs and a model of the real one's size with random weights (BLIP large, GIT large, or a tagger
of the size of ConvNeXt base), and takes in turns, in one run: the model alone on tensors that are in memory already;
the script's pipeline, which decodes ahead and writes caption files; and, to compare, one stage after the other. The
best of the rounds counts, since a busy machine only ever takes time away. On a CPU the decoders take their time from
the model, so that the share of decoding in all work is the least that can be lost; on a GPU they do not. What the CPU
computed is counted beside the time on the clock: where other programs run, it says more.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import best_of, make_images
from library.captioning.caption_files import caption_path, write_caption
from library.captioning.pipeline import Stages, process_images
from library.cli.jobs.outcome import Outcome

_CAPTION_LENGTH = 16  # tokens: about as long as captions are; random weights would find no end
_TAGGER_SIZE, _NUM_TAGS = 448, 9083


@dataclass(frozen=True)
class _Model:
    load: Callable[[str], Any]
    infer: Callable[[Sequence[str], Sequence[Any]], Sequence[str]]


def measure(name: str, num_images: int, *, size: int, batch_size: int, num_threads: int, num_rounds: int) -> dict:
    """Images a second of the model alone (`alone`), and the others as shares of it; `decoding`: of its time."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        make_images(images, num_images, size)
        paths = sorted(map(str, images.iterdir()))
        model = _MODELS[name](Path(folder))
        ready = [model.load(path) for path in paths]

        def batches(loaded: Callable[[int], Any]) -> None:
            for start in range(0, num_images, batch_size):
                numbers = range(start, min(start + batch_size, num_images))
                here = [paths[number] for number in numbers]
                for path, text in zip(here, model.infer(here, [loaded(number) for number in numbers]), strict=True):
                    if loaded is not ready.__getitem__:
                        store(path, text)

        def store(path: str, text: str) -> None:
            write_caption(caption_path(path, ".txt"), text)

        def pipeline() -> None:
            outcome = Outcome()
            process_images(
                paths, Stages(model.load, model.infer, store), outcome, batch_size=batch_size, num_threads=num_threads,
                title=name,
            )  # fmt: skip
            assert outcome.done == num_images

        seconds = best_of({
            "alone": lambda: batches(ready.__getitem__),
            "pipeline": pipeline,
            "one_after_the_other": lambda: batches(lambda number: model.load(paths[number])),
            "decoding": lambda: [model.load(path) for path in paths],
        }, num_rounds, lambda: None)  # fmt: skip
    alone, alone_cpu = seconds.pop("alone")
    decoding, _ = seconds.pop("decoding")
    shares = {key: alone / clock for key, (clock, _) in seconds.items()}
    shares |= {f"{key}_cpu": alone_cpu / cpu for key, (_, cpu) in seconds.items()}
    return {"alone": num_images / alone, "decoding": decoding / alone, **shares}


def _blip(folder: Path) -> _Model:
    from transformers import BlipConfig, BlipForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    config = BlipConfig(vision_config=vision, text_config={"num_attention_heads": 12})
    return _captioner("blip", BlipForConditionalGeneration(config), BlipImageProcessorPil(), folder)


def _git(folder: Path) -> _Model:
    from transformers import GitConfig, GitForCausalLM
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
              "patch_size": 14}  # fmt: skip
    return _captioner("git", GitForCausalLM(GitConfig(vision_config=vision)), CLIPImageProcessorPil(), folder)


def save_small_blip(folder: Path) -> None:
    """A BLIP of some 20 million parameters with random weights, as transformers writes it, for images of 224."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    size = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 6}
    words = {"encoder_hidden_size": 256, "max_position_embeddings": 80}
    config = BlipConfig(vision_config={**size, "image_size": 224}, text_config={**size, **words})
    folder.mkdir()
    sides = {"height": 224, "width": 224}
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=sides), _tokenizer(folder)).save_pretrained(folder)


def _tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    special = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{number}" for number in range(len(special), 30524)]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]))
    return BertTokenizer(str(folder / "vocab.txt"))


def _captioner(kind: Any, model: Any, image_processor: Any, folder: Path) -> _Model:
    import torch

    from library.captioning.caption_model import CaptionModel
    from library.captioning.sampling import KeyedNucleusSampling
    from library.models.devices import choose_device

    device = choose_device(None)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    captioner = CaptionModel(kind, model.eval().to(device, dtype), image_processor, _tokenizer(folder), device, dtype)

    def infer(paths: Sequence[str], images: Sequence[Any]) -> list[str]:
        length = {"max_length": _CAPTION_LENGTH, "min_length": _CAPTION_LENGTH, "do_sample": False}
        return captioner.captions(images, **length, logits_processor=[KeyedNucleusSampling(paths, 42, 0.9)])

    return _Model(captioner.load, infer)


def _tagger(folder: Path) -> _Model:
    from library.captioning.tagging.tagger import Tagger

    write_convnext(folder / "model.onnx", size=_TAGGER_SIZE, num_tags=_NUM_TAGS)
    tagger = Tagger(folder / "model.onnx", _NUM_TAGS)

    def infer(paths: Sequence[str], images: Sequence[Any]) -> list[str]:
        return [", ".join(map(str, np.flatnonzero(row > 0.9)[:30])) for row in tagger.probabilities(images)]

    return _Model(tagger.load, infer)


def write_convnext(path: Path, *, size: int, num_tags: int) -> None:
    """A classifier with the layers of ConvNeXt base (Liu et al., 2201.03545) and random weights, as ONNX, NHWC."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    current = "input"

    def add(kind: str, *shapes: tuple[int, ...], **attributes: Any) -> None:
        nonlocal current
        names = [f"w{len(weights) + number}" for number in range(len(shapes))]
        for name, shape in zip(names, shapes, strict=True):
            values = rng.standard_normal(shape, dtype=np.float32) / max(1, np.prod(shape[1:])) ** 0.5
            weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        nodes.append(helper.make_node(kind, [current, *names], [f"x{len(nodes)}"], **attributes))
        current = f"x{len(nodes) - 1}"

    def normalise(width: int) -> None:
        add("LayerNormalization", (width,), (width,), axis=-1)

    to_channels_first, to_channels_last = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    widths, depths = (128, 256, 512, 1024), (3, 3, 27, 3)
    add("Transpose", **to_channels_first)
    add("Conv", (widths[0], 3, 4, 4), (widths[0],), strides=[4, 4])
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if number:
            add("Conv", (width, widths[number - 1], 2, 2), (width,), strides=[2, 2])
        for _ in range(depth):
            skipped = current
            add("Conv", (width, 1, 7, 7), (width,), group=width, pads=[3, 3, 3, 3])
            add("Transpose", **to_channels_last)
            normalise(width)
            add("MatMul", (width, 4 * width))
            add("Gelu")
            add("MatMul", (4 * width, width))
            add("Transpose", **to_channels_first)
            nodes.append(helper.make_node("Add", [current, skipped], [f"x{len(nodes)}"]))
            current = f"x{len(nodes) - 1}"
    add("GlobalAveragePool")
    add("Flatten")
    add("MatMul", (widths[-1], num_tags))
    nodes.append(helper.make_node("Sigmoid", [current], ["output"]))
    graph = helper.make_graph(
        nodes,
        "convnext",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", size, size, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", num_tags])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


_MODELS: dict[str, Callable[[Path], _Model]] = {"blip": _blip, "git": _git, "tagger": _tagger}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(_MODELS), default="blip")
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024, help="width and height of the images")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoders", type=int, default=min(8, os.cpu_count() or 1), help="threads that decode")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    result = measure(
        args.model, args.num_images, size=args.size, batch_size=args.batch_size, num_threads=args.decoders,
        num_rounds=args.rounds,
    )  # fmt: skip
    print(f"{args.model} alone: {result['alone']:.3g} images/s, batches of {args.batch_size}")
    print(f"decoding images of {args.size} x {args.size} takes {result['decoding']:.1%} of the model's time")
    for name in ("pipeline", "one_after_the_other"):
        share, share_cpu = result[name], result[f"{name}_cpu"]
        print(f"{name.replace('_', ' ')}: {share:.1%} of the model's speed ({share_cpu:.1%} by CPU time)")


if __name__ == "__main__":
    main()
