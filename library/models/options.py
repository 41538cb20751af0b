"""Options of the model: base model, prompts, attention and memory, metadata of saved files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.models.thumbnail import thumbnail_url


@dataclass(frozen=True)
class ModelOptions:
    """The base model and its VAE."""

    GROUP: ClassVar[str] = "Model"

    pretrained_model_name_or_path: str | None = option(
        None,
        required=True,
        metavar="PATH",
        help="base model: a Diffusers folder, a .safetensors or .ckpt file in the Stability layout, or a name on the"
        " Hugging Face Hub (owner/name)",
    )
    vae: str | None = option(
        None,
        metavar="PATH",
        help="VAE that replaces the model's own: a VAE or a model with one, as a file, a folder or a name on the Hub",
    )
    tokenizer_cache_dir: str | None = option(
        None,
        metavar="FOLDER",
        help="folder that caches the tokenizer",
        inert="no effect: the vocabulary comes with this program",
    )
    disable_mmap_load_safetensors: bool = option(
        False,
        help="read .safetensors files of the model and the VAE without memory mapping: faster from some network drives",
        on_resume="unimportant",
    )
    v2: bool = option(
        False, help="the model is Stable Diffusion 2.x (detected from the model; a contradiction is an error)"
    )
    v_parameterization: bool = option(
        False,
        help="v-prediction: the model predicts v, not noise (needed for single files such as SD 2.x 768, which do not"
        " say so), or is to be trained to, with a warning where it says that it predicts noise",
    )


_TOKEN_LENGTHS = (75, 150, 225)
_NO_TOKEN_LENGTH = ("", "none", "0")  # as front ends write "nothing chosen"


def parse_token_length(value: Any) -> int:
    """75, 150 or 225, as a number or a text; 75 where nothing is chosen. Raises `ValueError` with what was expected."""
    expected = ValueError(f"one of {', '.join(map(str, _TOKEN_LENGTHS))}")
    if isinstance(value, bool):
        raise expected
    if str(value).strip().lower() in _NO_TOKEN_LENGTH:
        return _TOKEN_LENGTHS[0]
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        raise expected from None
    if length not in (0, *_TOKEN_LENGTHS):
        raise expected
    return int(length) or _TOKEN_LENGTHS[0]


@dataclass(frozen=True)
class PromptOptions:
    """How captions and prompts are tokenized and encoded."""

    GROUP: ClassVar[str] = "Prompts"

    clip_skip: int | None = option(
        None,
        help="clip skip: use the hidden states of the n-th text encoder layer from the end; 1 is the last",
        minimum=1,
    )
    max_token_length: int = option(
        75, help="maximum caption length in tokens, 75, 150 or 225, encoded in chunks of 75", parse=parse_token_length,
        metavar="N",
    )  # fmt: skip
    weighted_captions: bool = option(
        False, help="prompt weights in captions: (more), (much:1.3), [less]; \\( and \\[ are plain brackets"
    )
    no_token_padding: bool = False  # captions are padded to the longest of their batch

    def check(self) -> Iterator[UserError]:
        if self.no_token_padding and self.max_token_length > _TOKEN_LENGTHS[0]:
            yield UserError(
                f"--no_token_padding with --max_token_length {self.max_token_length}",
                hint="leave one of them out: longer captions are encoded in padded chunks",
            )


@dataclass(frozen=True)
class DreamBoothPromptOptions(PromptOptions):
    """The prompt options of train_db.py."""

    no_token_padding: bool = option(
        False, help="pad captions to the longest of their batch, not to 75 tokens; sample prompts are always padded"
    )


_ATTENTION = ("mem_eff_attn", "xformers", "sdpa")  # the first that is given is used
_NOTHING_COMPILED = "no"
_DYNAMO_BACKENDS = (
    _NOTHING_COMPILED, "eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi",
    "fx2trt", "onnxrt", "tensorrt", "ipex", "tvm",
)  # fmt: skip
_OTHER_SPELLINGS = {"tensort": "tensorrt"}


def parse_dynamo_backend(value: Any) -> str:
    """The name of a torch.compile backend as PyTorch spells it. Raises `ValueError` with what was expected."""
    name = _OTHER_SPELLINGS.get(value, value) if isinstance(value, str) else value
    if name not in _DYNAMO_BACKENDS:
        raise ValueError(f"one of {', '.join(_DYNAMO_BACKENDS)}")
    return name


@dataclass(frozen=True)
class MemoryOptions:
    """Attention, precision of frozen parts, and torch.compile: memory against speed."""

    GROUP: ClassVar[str] = "Attention and memory"

    sdpa: bool = option(False, help="PyTorch's scaled dot-product attention; the default")
    xformers: bool = option(
        False,
        help="xformers attention, where the package is installed and there is a GPU; takes precedence over --sdpa",
        aliases=("diffusers_xformers",),
    )
    mem_eff_attn: bool = option(
        False, help="chunked attention: less memory, slower; takes precedence over --xformers and --sdpa"
    )
    no_half_vae: bool = option(False, help="keep the VAE in float32 with --mixed_precision")
    vae_slicing: bool = option(False, help="VAE slicing: process one image at a time")
    fp8_base: bool = option(False, help="store the frozen U-Net in fp8 (8-bit floats) and compute in --mixed_precision")
    fp8_base_unet: bool = option(False, help="same as --fp8_base (neither changes the text encoder)")
    cpu_offload_checkpointing: bool = option(
        False,
        help="offload the activations that --gradient_checkpointing keeps to the CPU",
        inert="no effect: these activations stay on the GPU",
    )
    lowram: bool = option(False, help="load the model directly to the GPU")
    highvram: bool = option(False, help="keep the VAE on the GPU after caching latents")
    channels_last: bool = option(
        False,
        help="channels-last layout of frozen U-Net and VAE weights: faster convolutions in bf16 and fp16 on many GPUs",
        on_resume="unimportant",
    )
    torch_compile: bool = option(
        False, help="compile the transformer blocks of the U-Net with torch.compile: slow first step, faster steps"
    )
    dynamo_backend: str = option(
        "inductor",
        help="backend of torch.compile; no: compile nothing, not even with --torch_compile",
        choices=_DYNAMO_BACKENDS,
        parse=parse_dynamo_backend,
    )

    @property
    def keeps_fp8_unet(self) -> bool:
        """Whether the frozen U-Net is stored in fp8."""
        return self.fp8_base or self.fp8_base_unet

    @property
    def compiles(self) -> bool:
        """Whether blocks of the U-Net are compiled."""
        return self.torch_compile and self.dynamo_backend != _NOTHING_COMPILED

    def check(self) -> Iterator[str]:
        """One line for each option that has no effect together with the others."""
        chosen = [f"--{name}" for name in _ATTENTION if getattr(self, name)]
        if len(chosen) > 1:
            yield f"of {', '.join(chosen[:-1])} and {chosen[-1]} only {chosen[0]} is used"
        if self.torch_compile and not self.compiles:
            yield f"--torch_compile does nothing with --dynamo_backend {self.dynamo_backend}"


def parse_true_false(value: Any) -> str:
    """ "true" or "false", as text. Raises `ValueError` with what was expected."""
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text


@dataclass(frozen=True)
class MetadataOptions:
    """Entries of the model specification (modelspec.*) in saved .safetensors files."""

    GROUP: ClassVar[str] = "Metadata of saved files"

    metadata_title: str | None = option(help="title of the model (default: the name of the file)", metavar="TEXT")
    metadata_author: str | None = option(help="author of the model", metavar="TEXT")
    metadata_description: str | None = option(help="description of the model", metavar="TEXT")
    metadata_license: str | None = option(help="license of the model", metavar="TEXT")
    metadata_tags: str | None = option(help="comma-separated tags", metavar="TEXT")
    metadata_usage_hint: str | None = option(help="usage hint", metavar="TEXT")
    metadata_thumbnail: str | None = option(
        help="thumbnail: the path of a JPEG, PNG or WebP image, stored as a JPEG of at most 256x256, or a data URL"
        " (data:image/jpeg;base64,...)",
        metavar="FILE|URL",
        on_resume="unimportant",
    )
    metadata_merged_from: str | None = option(help="models that it was merged from", metavar="TEXT")
    metadata_trigger_phrase: str | None = option(help="trigger phrase", metavar="TEXT")
    metadata_preprocessor: str | None = option(help="preprocessor that input images need", metavar="TEXT")
    metadata_is_negative_embedding: str | None = option(
        help="whether it is an embedding for negative prompts",
        metavar="true|false",
        parse=parse_true_false,
    )

    @cached_property
    def thumbnail(self) -> str | None:
        """The thumbnail as a data URL; read once, so that its file is not needed any more when a model is saved.

        Raises `UserError` where it cannot be read.
        """
        return None if self.metadata_thumbnail is None else thumbnail_url(self.metadata_thumbnail)

    def check(self) -> Iterator[UserError]:
        try:
            _ = self.thumbnail
        except UserError as error:
            yield error
