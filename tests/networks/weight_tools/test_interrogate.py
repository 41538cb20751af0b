"""If this fails, somebody looks for the trigger word of a LoRA and is shown another one."""

import io

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from library.cli.jobs.outcome import Outcome
from library.models.text.tokenizer import SHIPPED_VOCABULARY
from networks.lora_interrogator import JOB
from networks.weight_tools.interrogation import interrogate
from networks.weight_tools.options.interrogation import InterrogateOptions
from tests.networks.weight_tools.conftest import TEXT
from tests.tiny_models import make_tiny, write_folder


@pytest.fixture(scope="module")
def tiny():
    return make_tiny(False)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return write_folder(tiny, tmp_path_factory.mktemp("model") / "model")


def test_tokens_are_ordered_by_how_much_their_states_change(tiny, folder, tmp_path):
    """Against transformers' own text encoder, with the update added to its weight."""
    generator, path = torch.Generator().manual_seed(2), tmp_path / "lora.safetensors"
    down, up = torch.randn(2, 64, generator=generator), torch.randn(96, 2, generator=generator)
    save_file({f"{TEXT}.lora_down.weight": down, f"{TEXT}.lora_up.weight": up}, path)
    tokens, encoder = torch.arange(1000, 1250), tiny.text_encoder
    ids = torch.tensor([[49406, number, 49407] for number in tokens])
    (weight,) = (each for name, each in encoder.named_parameters() if name.endswith("layers.0.mlp.fc1.weight"))
    states = []
    with torch.no_grad():
        for factor in (0, 1):
            weight += factor * up @ down
            states.append(encoder(ids).last_hidden_state[:, 1:].flatten(1))
    changes = (states[1] - states[0]).norm(dim=1) / states[0].norm(dim=1)

    outcome, out = Outcome(), io.StringIO()
    options = InterrogateOptions(sd_model=str(folder), model=str(path), batch_size=100, device="cpu")
    interrogate(options, outcome, out, tokens)
    _, *lines = out.getvalue().splitlines()
    assert outcome.done == 250 and len(lines) == 100
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED_VOCABULARY)
    for line, index in zip(lines, changes.topk(100).indices.tolist(), strict=True):
        change, number, text = line.split(maxsplit=2)
        assert int(number) == tokens[index] and abs(float(change) - float(changes[index])) < 1e-4
        assert text.removesuffix("-") == tokenizer.decode([int(number)]).strip()


def test_a_lora_without_text_encoder_is_said(run, folder, tmp_path):
    name, path = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", tmp_path / "a.safetensors"
    save_file({f"{name}.lora_down.weight": torch.ones(4, 32), f"{name}.lora_up.weight": torch.ones(32, 4)}, path)
    ended = run(JOB, "--sd_model", folder, "--model", path)
    assert ended.status == 2 and "has no layers of a text encoder" in ended.error[0]
