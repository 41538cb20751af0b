"""The network of an adapter file, by the names of the tensors in it."""

from __future__ import annotations

from collections.abc import Iterable

from library.cli.errors import UserError
from library.models.reading.opened import OpenedModel
from networks import loha, lokr, lora, oft
from networks.adapters.creation import NetworkOfFile
from networks.adapters.files import load_adapter
from networks.adapters.loha_layer import LoHaLayer
from networks.adapters.lokr_layer import LoKrLayer
from networks.adapters.lora_layer import LoRALayer
from networks.adapters.network import AdapterNetwork
from networks.adapters.oft_layer import OFTLayer
from networks.adapters.weights import FileKind
from networks.weight_tools.opened_models import placeholder_weights, text_encoders_of, unet_of

# files of LoRA-FA and DyLoRA are LoRA files
_KINDS: dict[FileKind, NetworkOfFile] = {
    LoRALayer.FILE: lora.create_network_from_weights,
    LoHaLayer.FILE: loha.create_network_from_weights,
    LoKrLayer.FILE: lokr.create_network_from_weights,
    OFTLayer.FILE: oft.create_network_from_weights,
}


def kind_of(keys: Iterable[str]) -> FileKind:
    """The kind of a file with these keys in our form; LoRA where they are of none."""
    names = {key.partition(".")[2] for key in keys}
    return next((kind for kind in _KINDS if names & {*kind.required, *kind.optional}), LoRALayer.FILE)


def refuse_other_kinds(keys: Iterable[str], path: str) -> None:
    """Raises `UserError` for a file that is neither a LoRA nor a DoRA."""
    kind = kind_of(keys)
    if kind != LoRALayer.FILE:
        hint = "give a LoRA file; merge_lora.py and sdxl_merge_lora.py merge this one into a model (--sd_model)"
        raise UserError(f"{path} is a {kind.name}, not a LoRA", hint)


def network_of_file(model: OpenedModel, path: str, multiplier: float) -> AdapterNetwork:
    """The network of a file on an opened model, not attached. Raises `UserError` where it does not fit, or is none."""
    weights = load_adapter(path)
    create = _KINDS[kind_of(weights)]
    unet = unet_of(model)
    with placeholder_weights(model):
        network, _ = create(
            multiplier, path, model.vae, text_encoders_of(model), unet, weights_sd=weights, for_inference=True
        )
    return network
