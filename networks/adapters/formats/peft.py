"""LoRA and DoRA files as PEFT and Diffusers name their tensors, read as ours and written.

Theirs: `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`, in PEFT's own files with `base_model.model.` in front;
`lora_B`, and `lora_magnitude_vector` of a DoRA. Older ones: `unet....attn1.processor.to_q_lora.down.weight`.
Ours: `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`, `lora_up`, `dora_scale`. Theirs seldom have
alphas among the tensors: these are in the metadata or in `adapter_config.json`, or else the ranks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from library.cli.errors import UserError
from networks.adapters.weights import ALPHA, DOWN, LORA_FILE, MAGNITUDE, UP, is_by_input, parts_by_layer

METADATA_KEY = "lora_adapter_metadata"  # of Diffusers: JSON of PEFT's configurations, each key with its part in front
_CONFIG_FILE = "adapter_config.json"  # of PEFT, beside the weights
_TENSORS = {
    "lora_A": DOWN, "down": DOWN, "lora_B": UP, "up": UP, "lora_magnitude_vector": MAGNITUDE, "alpha": ALPHA,
}  # fmt: skip
_KEY = re.compile(rf"(.+)\.({'|'.join(_TENSORS)})(?:\.[\w-]+)?(?:\.weight)?")  # between: PEFT's name of the adapter
_OLDER = (
    (re.compile(r"\.(?:lora|lora_linear_layer)\.(?=down\.|up\.|alpha)"), r"."),
    (re.compile(r"\.processor\.to_([qkv])_lora\."), r".to_\1."),
    (re.compile(r"\.processor\.to_out_lora\."), r".to_out.0."),
    (re.compile(r"\.self_attn\.to_(q|k|v|out)_lora\."), r".self_attn.\1_proj."),
)
_PATH_OF_UNET = re.compile(r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding)\.")
_PATH_OF_TEXT_ENCODER = re.compile(r"(?:text_model\.)?(?:encoder\.layers|embeddings)\.")
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
# modules of these models that have underscores in their names; the others are single words and numbers
_MODULE = re.compile(
    r"(?:down|up|transformer)_blocks|mid_block|text_model|self_attn|(?:q|k|v|out)_proj|to_(?:q|k|v|out)|proj_(?:in|out)"
    r"|conv_(?:shortcut|in|out)|time_emb_proj|time_embedding|linear_[12]|[a-z0-9]+"
)


class RenamedTensors(Mapping[str, torch.Tensor]):
    """Tensors under other names; each is read when it is asked for."""

    def __init__(self, read: Mapping[str, Callable[[], torch.Tensor]]):
        self._read = read

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._read[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


@dataclass(frozen=True)
class _TheirKey:
    """`unet`, `down_blocks.0.attentions.0.proj_in`, and our name of the tensor."""

    part: str
    path: str
    tensor: str


def own_form(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], file: Path
) -> Mapping[str, torch.Tensor]:
    """The tensors of a file of PEFT or Diffusers under our names, with alphas; those of other files unchanged.

    Raises `UserError` for a configuration beside the file that cannot be read.
    """
    keys = {key: their for key in tensors if (their := _read_key(key)) is not None}
    if not keys or len(keys) < len(tensors):
        return tensors
    has_two = any(key.part == "text_encoder_2" for key in keys.values())
    read: dict[str, Callable[[], torch.Tensor]] = {}
    for theirs, key in keys.items():
        name = _own_name(key, has_two)
        get = partial(tensors.__getitem__, theirs)
        read[f"{name}.{key.tensor}"] = partial(_column, get) if key.tensor == MAGNITUDE else get
    configs = _configs(metadata, file)
    for theirs, key in keys.items():
        alpha = _alpha(configs.get(key.part, {}), key.path) if key.tensor == DOWN else None
        if alpha is not None:
            rank = partial(tensors.__getitem__, theirs)
            read.setdefault(f"{_own_name(key, has_two)}.{ALPHA}", partial(alpha, rank))
    return RenamedTensors(read)


def _read_key(key: str) -> _TheirKey | None:
    if key.startswith("lora_"):
        return None
    for pattern, replacement in _OLDER:
        key = pattern.sub(replacement, key)
    found = _KEY.fullmatch(key.removeprefix("base_model.model."))
    if found is None:
        return None
    path, tensor = found.groups()
    part, _, rest = path.partition(".")
    if part in _PREFIXES:
        return _TheirKey(part, rest, _TENSORS[tensor])
    if _PATH_OF_UNET.match(f"{path}."):
        return _TheirKey("unet", path, _TENSORS[tensor])
    return _TheirKey("text_encoder", path, _TENSORS[tensor]) if _PATH_OF_TEXT_ENCODER.match(path) else None


def _own_name(key: _TheirKey, has_two_encoders: bool) -> str:
    prefix = _PREFIXES[key.part]
    if key.part != "unet":
        prefix = "lora_te1" if has_two_encoders and key.part == "text_encoder" else prefix
        prefix += "" if key.path.startswith("text_model.") else "_text_model"
    return f"{prefix}_{key.path}".replace(".", "_")


def _column(get: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A magnitude, (out,) or (1, out, 1, 1), as (out, 1) or (out, 1, 1, 1)."""
    magnitude = get()
    return magnitude.reshape(-1, *[1] * max(1, magnitude.dim() - 1))


def _configs(metadata: Mapping[str, str], file: Path) -> dict[str, Mapping[str, Any]]:
    """PEFT's configuration of each part, where there is one."""
    config_file = file.with_name(_CONFIG_FILE)
    if METADATA_KEY in metadata:
        entries = _json(metadata[METADATA_KEY], f"{file}: {METADATA_KEY} in its metadata")
        return {
            part: {key.removeprefix(f"{part}."): value for key, value in entries.items() if key.startswith(f"{part}.")}
            for part in _PREFIXES
        }
    if config_file.is_file():
        config = _json(config_file.read_text(encoding="utf-8", errors="replace"), str(config_file))
        return dict.fromkeys(_PREFIXES, config)
    return {}


def _json(text: str, source: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{source} is not the JSON of PEFT's configuration", hint="copy or download the file again")
    return content


def _alpha(config: Mapping[str, Any], path: str) -> Callable[[Callable[[], torch.Tensor]], torch.Tensor] | None:
    """Gives the alpha of a layer for its `lora_A`; None where the configuration has none, and it is the rank."""
    pattern = config.get("alpha_pattern")
    own = (alpha for key, alpha in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", path))
    alpha = next(own, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)):
        return None
    uses_root = bool(config.get("use_rslora"))  # alpha / sqrt(rank)
    return lambda get: torch.tensor(float(alpha) * (math.sqrt(len(get())) if uses_root else 1.0))


def peft_form(tensors: Mapping[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA or DoRA of ours, as Diffusers and PEFT read them.

    alpha / rank is multiplied into `lora_B`, computed in float32, because many readers take the alpha to be the rank.
    Raises `UserError` for other files, and for layers of other models.
    """
    written = {}
    for name, parts in parts_by_layer(tensors, LORA_FILE, source).items():
        path, down, up = _their_path(name, source), parts[DOWN], parts[UP]
        scale = float(parts[ALPHA]) / len(down) if ALPHA in parts else 1.0
        written[f"{path}.lora_A.weight"] = down
        written[f"{path}.lora_B.weight"] = (up.float() * scale).to(up.dtype)
        if is_by_input(parts):
            message = f"{source}: {name} has magnitudes of input channels, which PEFT and Diffusers do not have"
            raise UserError(message, hint="train the DoRA with networks.lora, or merge it into a model")
        if MAGNITUDE in parts:
            is_convolution = down.dim() == 4
            magnitude = parts[MAGNITUDE].flatten()
            written[f"{path}.lora_magnitude_vector.weight"] = (
                magnitude[None, :, None, None] if is_convolution else magnitude
            )
    return written


def _their_path(name: str, source: str) -> str:
    for part, prefix in (*_PREFIXES.items(), ("text_encoder", "lora_te1")):
        path = name.removeprefix(f"{prefix}_")
        modules = _MODULE.findall(path)
        if path != name and "_".join(modules) == path:
            return ".".join((part, *modules))
    raise UserError(
        f"{source}: {name} is a layer of a model that Diffusers names otherwise", hint="give a LoRA of SD 1.x or 2.x"
    )
