"""What front ends write into their files is understood, and what does nothing is said."""

from __future__ import annotations

import pytest

from library.cli.errors import UserError
from library.cli.options import option_fields
from library.cli.parser import parse_options
from library.models.options import MemoryOptions, ModelOptions, PromptOptions, parse_token_length, parse_true_false

GROUPS = (PromptOptions, MemoryOptions)


def parsed(*argv: str):
    return parse_options(argv, GROUPS, program="x", description="x")


# ---- attention


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("sdpa", "xformers"), "of --xformers and --sdpa only --xformers is used"),
        (("xformers", "mem_eff_attn"), "of --mem_eff_attn and --xformers only --mem_eff_attn is used"),
        (
            ("sdpa", "xformers", "mem_eff_attn"),
            "of --mem_eff_attn, --xformers and --sdpa only --mem_eff_attn is used",
        ),
    ],
)
def test_several_kinds_of_attention_are_no_error_and_the_one_used_is_named(flags, line):
    memory = parsed(*(f"--{flag}" for flag in flags))[MemoryOptions]
    assert list(memory.check()) == [line]


@pytest.mark.parametrize("flag", ["sdpa", "xformers", "mem_eff_attn"])
def test_one_kind_of_attention_is_nothing_to_speak_of(flag):
    assert list(MemoryOptions(**{flag: True}).check()) == []


# ---- torch.compile


@pytest.mark.parametrize(
    ("argv", "compiles", "num_lines"),
    [
        ((), False, 0),
        (("--dynamo_backend", "no"), False, 0),  # front ends always write it
        (("--torch_compile",), True, 0),
        (("--torch_compile", "--dynamo_backend", "eager"), True, 0),
        (("--torch_compile", "--dynamo_backend", "no"), False, 1),
    ],
)
def test_nothing_is_compiled_with_the_backend_no(argv, compiles, num_lines):
    memory = parsed(*argv)[MemoryOptions]
    assert memory.compiles == compiles
    lines = list(memory.check())
    assert lines == ["--torch_compile does nothing with --dynamo_backend no"] * num_lines


@pytest.mark.parametrize("spelling", ["tensort", "tensorrt"])
def test_tensorrt_is_known_in_both_spellings(spelling):
    assert parsed("--dynamo_backend", spelling)[MemoryOptions].dynamo_backend == "tensorrt"


def test_a_backend_that_is_not_known_is_an_error_that_names_those_that_are():
    with pytest.raises(UserError, match=r"(?s)--dynamo_backend inducter.*inductor"):
        parsed("--dynamo_backend", "inducter")


# ---- 8 bits, what does nothing


@pytest.mark.parametrize(("flags", "keeps"), [((), False), (("fp8_base",), True), (("fp8_base_unet",), True)])
def test_both_flags_of_8_bits_mean_the_unet(flags, keeps):
    assert parsed(*(f"--{flag}" for flag in flags))[MemoryOptions].keeps_fp8_unet == keeps


@pytest.mark.parametrize(
    ("owner", "name"), [(MemoryOptions, "cpu_offload_checkpointing"), (ModelOptions, "tokenizer_cache_dir")]
)
def test_what_does_nothing_is_declared_so(owner, name):
    assert owner.__dataclass_fields__[name].metadata["option"].inert


# ---- prompts


@pytest.mark.parametrize("value", [0, "0", 0.0, "0.0", "", "none", "None", 75, "75", 75.0, "75.0"])
def test_a_token_length_that_is_not_chosen_is_75(value):
    length = parse_token_length(value)
    assert length == 75 and type(length) is int


@pytest.mark.parametrize(("value", "length"), [(150, 150), ("150", 150), (225.0, 225), ("225.0", 225)])
def test_a_token_length_may_come_as_text_or_as_a_whole_float(value, length):
    assert parse_token_length(value) == length


@pytest.mark.parametrize("value", [74, 150.5, "150.5", True, False, "many", [75], "nan", "inf", -75, 10**400])
def test_other_token_lengths_are_refused(value):
    with pytest.raises(ValueError, match="one of 75, 150, 225"):
        parse_token_length(value)


def test_a_clip_skip_of_0_means_that_none_is_given():
    (field,) = (field for field in option_fields(PromptOptions) if field.name == "clip_skip")
    assert field.is_off(0) and not field.is_off(1)


# ---- metadata


@pytest.mark.parametrize(("value", "text"), [(True, "true"), ("True", "true"), ("false", "false")])
def test_whether_it_is_a_negative_embedding_is_a_text_as_the_specification_has_it(value, text):
    assert parse_true_false(value) == text
    with pytest.raises(ValueError, match="true or false"):
        parse_true_false("perhaps")
