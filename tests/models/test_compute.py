"""Attention in pieces: the numbers of the plain kind, with less memory."""

from __future__ import annotations

import sys

import pytest
import torch
import torch._dynamo.testing
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0

from library.cli.errors import UserError
from library.models.compute import ChunkedAttention, chunked_attention, compile_blocks, set_attention
from library.models.options import MemoryOptions
from networks.adapters.lora_layer import LoRALayer
from tests import programs


@pytest.mark.parametrize("chunk_elements", [1, 2 * 3 * 11 * 4, 10**9])
def test_pieces_give_the_attention_of_the_formula_and_its_gradients(chunk_elements: int) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(2, 3, length, 8, dtype=torch.float64, generator=generator) for length in (13, 11, 11)]
    ours, plain = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
    output = chunked_attention(*ours, chunk_elements=chunk_elements)
    expected = torch.softmax(plain[0] @ plain[1].transpose(-1, -2) / 8**0.5, dim=-1) @ plain[2]
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=0)


def test_a_whole_model_computes_the_same_with_it(tiny) -> None:
    generator = torch.Generator().manual_seed(5)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 64, generator=generator)
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    results = []
    for options in (MemoryOptions(), MemoryOptions(mem_eff_attn=True)):
        set_attention((tiny.unet, tiny.vae), options, torch.device("cpu"))
        with torch.no_grad():
            results.append((tiny.unet(latents, 5, text).sample, tiny.vae(pixels).sample))
    assert all(isinstance(each, ChunkedAttention) for each in tiny.unet.attn_processors.values())
    for module in (tiny.unet, tiny.vae):
        module.set_attn_processor(AttnProcessor2_0())
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, atol=2e-5, rtol=1e-4)


class XformersTaker:
    """Stands for a U-Net that is set to use xformers."""

    took_xformers = False

    def set_attn_processor(self, processor) -> None:
        self.processor = processor

    def enable_xformers_memory_efficient_attention(self) -> None:
        self.took_xformers = True


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        ({"sdpa": True}, None),
        ({"xformers": True}, "xformers"),
        ({"xformers": True, "sdpa": True}, "xformers"),
        ({"mem_eff_attn": True, "sdpa": True}, "pieces"),
        ({"mem_eff_attn": True, "xformers": True, "sdpa": True}, "pieces"),
    ],
)
def test_of_several_kinds_of_attention_one_is_used(flags: dict[str, bool], used: str | None, monkeypatch) -> None:
    """Command files name --sdpa beside another: pieces come before xformers, and xformers before PyTorch's own."""
    monkeypatch.setattr("library.models.compute.importlib.util.find_spec", lambda name: name)
    module = XformersTaker()
    set_attention((module,), MemoryOptions(**flags), torch.device("cuda"))
    assert module.took_xformers == (used == "xformers")
    assert isinstance(getattr(module, "processor", None), ChunkedAttention) == (used == "pieces")


class XformersThatFails(torch.nn.Module):
    def enable_xformers_memory_efficient_attention(self) -> None:
        raise NotImplementedError(
            "No operator found for `memory_efficient_attention_forward` with inputs:\n  query ..."
        )


def test_an_xformers_that_does_not_fit_the_gpu_is_a_line_and_names_what_works(monkeypatch) -> None:
    monkeypatch.setattr("library.models.compute.importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match="--xformers: .*No operator found.*inputs:\n.*--sdpa"):
        set_attention((XformersThatFails(),), MemoryOptions(xformers=True), torch.device("cuda"))


_PEAK = """
import sys, torch
from pathlib import Path
from library.models.compute import chunked_attention

def memory(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])

query, key, value = (torch.zeros(1, 4, 4096, 16, requires_grad=True) for _ in range(3))
attention = {"chunked": chunked_attention, "plain": lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2), -1) @ v}
before = memory("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
attention[sys.argv[1]](query, key, value).sum().backward()
print((memory("VmHWM:") - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_long_sequence_takes_a_fraction_of_the_memory() -> None:
    """4096 queries and keys, 4 heads: the matrix of attention alone has 256 MiB."""
    used = {}
    for kind in ("chunked", "plain"):
        done = programs.run(["-c", _PEAK, kind])
        assert done.returncode == 0, done.stderr
        used[kind] = int(done.stdout)
    assert used["chunked"] < 320
    assert used["plain"] > 512  # MiB: the measure sees what it should


def test_blocks_of_one_width_and_images_of_all_sizes_share_what_is_compiled() -> None:
    """Otherwise each bucket compiles anew, for minutes, until PyTorch gives up without a word."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    ).requires_grad_(False)  # fmt: skip
    for name, layer in unet.named_modules():
        if ".attentions." in name and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            LoRALayer(name, layer, rank=2, alpha=1.0).attach()
    text = torch.randn(2, 5, 8)
    images = [torch.randn(2, 4, height, 16) for height in (16, 8, 24, 32)]
    expected = [unet(image, 1, text).sample for image in images]

    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    compile_blocks(unet, graphs)
    counts = []
    for image, output in zip(images, expected, strict=True):
        torch.testing.assert_close(unet(image, 1, text).sample, output)
        counts.append(graphs.frame_count)
    assert sum(isinstance(module, BasicTransformerBlock) for module in unet.modules()) == 11
    assert counts[0] == 2  # one for each width
    assert counts[1] == counts[-1]  # from the second size on, what is compiled takes all
