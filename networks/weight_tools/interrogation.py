"""Shows which tokens the text encoder of a LoRA reacts to: those whose hidden states it changes most."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

import torch

from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome
from library.cli.logging import progress_bar
from library.models.devices import choose_device
from library.models.text.text_encoder import TextEncoder, restore_position_ids
from library.models.text.tokenizer import load_tokenizer
from networks.adapters.network import AdapterNetwork
from networks.weight_tools.adapter_kinds import network_of_file
from networks.weight_tools.opened_models import open_model, text_encoders_of, unet_of
from networks.weight_tools.options.interrogation import InterrogateOptions
from networks.weight_tools.options.merging import MODEL_FLAG

_NUM_SHOWN = 100
_END_OF_WORD = "</w>"


def interrogate(
    options: InterrogateOptions, outcome: Outcome, out: TextIO | None = None, tokens: torch.Tensor | None = None
) -> None:
    """Writes a line for each of the tokens that change most: the relative change, the id and the text.

    `tokens`: the ids that are looked at; all of the vocabulary, but start and end, where there are none.
    Raises `UserError` for a LoRA without layers of a text encoder.
    """
    device = choose_device(options.device)
    model = open_model(options.model_options, MODEL_FLAG)
    encoders = [encoder for encoder in model.text_encoders if isinstance(encoder, TextEncoder)]
    for encoder in encoders:
        _read(encoder, device)
    network = network_of_file(model, options.source, 1.0)
    if not network.text_encoder_loras:
        raise UserError(
            f"--model {options.source} has no layers of a text encoder", "its words act through the U-Net alone"
        )
    network.apply_to(text_encoders_of(model), unet_of(model), apply_text_encoder=True, apply_unet=False)
    network.to(device)
    tokenizer = load_tokenizer(None, pads_with_end=True).tokenizer
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if tokens is None:
        tokens = torch.tensor([number for number in range(len(tokenizer)) if number not in (start, end)])
    ids = torch.stack([torch.full_like(tokens, start), tokens, torch.full_like(tokens, end)], dim=1)
    changes = changes_of_prompts(encoders, network, ids, options)
    out = out or sys.stdout
    out.write("change  id     token (with - behind it: a beginning of words)\n")
    top = changes.topk(min(_NUM_SHOWN, len(changes)))
    for change, number in zip(top.values.tolist(), tokens[top.indices].tolist(), strict=True):
        text = tokenizer.decode([number]).strip()
        is_whole = str(tokenizer.convert_ids_to_tokens(number)).endswith(_END_OF_WORD)
        out.write(f"{change:<7.4f} {number:<6} {text}{'' if is_whole else '-'}\n")
    outcome.done += len(changes)


def _read(encoder: TextEncoder, device: torch.device) -> None:
    """Reads the weights of a text encoder of an opened model."""
    weights = {name: unread.to(device, torch.float32) for name, unread in encoder.state_dict().items()}
    encoder.load_state_dict(weights, strict=True, assign=True)
    encoder.requires_grad_(False)
    restore_position_ids(encoder)
    encoder.to(device)


@torch.no_grad()
def changes_of_prompts(
    encoders: Sequence[TextEncoder], network: AdapterNetwork, ids: torch.Tensor, options: InterrogateOptions
) -> torch.Tensor:
    """The relative change of each prompt's hidden states, (prompts,): |adapted - plain| / |plain|; ids: (prompts, n).

    The start token, which all prompts have, is left out. Of several text encoders the largest change counts.
    """
    largest = torch.zeros(len(ids))
    with progress_bar(len(encoders) * len(ids), "tokens") as bar:
        for encoder in encoders:
            for rows in torch.arange(len(ids)).split(options.batch_size):
                states = []
                for factor in (0.0, 1.0):
                    network.set_multiplier(factor)
                    states.append(encoder(ids[rows].to(encoder.device), options.clip_skip or 1)[:, 1:].flatten(1))
                plain, adapted = states
                changes = (adapted - plain).norm(dim=1) / plain.norm(dim=1)
                largest[rows] = torch.maximum(largest[rows], changes.cpu())
                bar.update(len(rows))
    return largest
