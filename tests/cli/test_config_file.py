"""If these fail, a configuration file made by another program is refused, or is misread."""

import dataclasses
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from library.cli.config_file import Findings, read_config_file, write_config_file
from library.cli.errors import UserError, UserErrors, raise_together
from library.cli.foreign_options import ForeignOptions, OtherFamily
from library.cli.options import NOT_YET, option, option_fields
from library.cli.parser import parse_options, read_options


@dataclasses.dataclass(frozen=True)
class Training:
    GROUP: ClassVar[str] = "Training"

    learning_rate: float = option(1.0, help="h", minimum=0)
    num_cycles: int = option(1, help="h", minimum=1)
    steps: int | None = option(help="h", minimum=1)
    steps_of_warmup: int | None = option(help="h", minimum=0)
    network_args: tuple[str, ...] = option((), help="h")
    sizes: str | None = option(help="h", aliases=("seizes",))
    later: str | None = option(help="h", inert=NOT_YET)
    later_too: bool = option(False, help="h", inert=NOT_YET)
    merged: tuple[str, ...] = option((), help="h", refused=("is not implemented yet", "leave it out"))
    half: bool = option(False, help="h")

    def check(self):
        if self.half and self.steps is None:
            yield "--half does nothing without --steps"


FOREIGN = ForeignOptions(
    unused=("epoch", "noise_offset_type", "text_encoder_lr"),
    renamed={"lr_cycles": "num_cycles"},
    arguments={"plus_ratio": "network_args"},
    families={"ae": ("FLUX", "Lumina"), "t5": ("FLUX", "SD3"), "clip_g": ("SD3",)},
    meanings={"lr": ("learning_rate",), "text_encoder_lr": ("learning_rate",)},
)


def parse(tmp_path, text, *argv, **details):
    file = tmp_path / "c.toml"
    file.write_text(text)
    argv = ["--config_file", str(file), *argv]
    details = {"foreign": FOREIGN, **details}
    options, errors = read_options(argv, [Training], program="x", description="d", **details)
    raise_together(errors)
    return options[Training]


def errors(tmp_path, text, *argv, **details):
    with pytest.raises(UserError) as caught:
        parse(tmp_path, text, *argv, **details)
    found = caught.value.errors if isinstance(caught.value, UserErrors) else [caught.value]
    return [(each.message.replace(f"{tmp_path}/", ""), each.hint) for each in found]


def test_keys_of_other_programs_are_one_warning(tmp_path, caplog):
    parse(tmp_path, 'epoch = 1\n[a]\nnoise_offset_type = "Original"\ntext_encoder_lr = 0.1\nclip_g = ""\n')
    said = "not used here: epoch, noise_offset_type, text_encoder_lr (here learning_rate)"
    assert caplog.messages == [f"{tmp_path}/c.toml: {said}"]


def test_keys_with_a_plain_meaning_are_carried_out(tmp_path, caplog):
    training = parse(tmp_path, 'lr_cycles = 3\nplus_ratio = 4\nnetwork_args = ["conv_dim=2"]')
    assert (training.num_cycles, training.network_args) == (3, ("conv_dim=2", "plus_ratio=4"))
    assert "lr_cycles = 3 is read as num_cycles" in caplog.text
    assert "plus_ratio = 4 is used as an argument of --network_args" in caplog.text
    assert parse(tmp_path, "plus_ratio = 0").network_args == ()
    assert parse(tmp_path, "plus_ratio = 4\nnetwork_args = false").network_args == ("plus_ratio=4",)
    # what the options say themselves comes first
    assert parse(tmp_path, 'plus_ratio = 4\nnetwork_args = ["plus_ratio=2"]').network_args == ("plus_ratio=2",)
    assert parse(tmp_path, "lr_cycles = 3", "--num_cycles", "5").num_cycles == 5
    assert errors(tmp_path, "lr_cycles = 3\nnum_cycles = 2") == [
        ("c.toml: num_cycles = 2 at the top, and lr_cycles = 3 at the top", "keep one of the two lines")
    ]


def test_a_key_in_two_sections_must_say_the_same(tmp_path):
    assert parse(tmp_path, '[a]\nsizes = "64"\nsteps = 2\n[b]\nsizes = "64"\nsteps = 2.0\n').steps == 2
    assert errors(tmp_path, '[a]\nsizes = "64"\n[b.c]\nseizes = "32"\n') == [
        ("c.toml: sizes = '64' in [a], and seizes = '32' in [b.c]", "keep one of the two lines")
    ]


def test_sections_nest_to_any_depth(tmp_path):
    assert parse(tmp_path, ".".join(["a"] * 3000) + ".learning_rate = 2").learning_rate == 2


def test_what_no_program_knows_is_an_error_with_the_nearest_name_or_meaning(tmp_path):
    assert errors(tmp_path, "learning_rat = 1\nlr = 1\nzzz = 1\n") == [
        ("c.toml: unknown option learning_rat", "did you mean learning_rate?"),
        ("c.toml: unknown option lr", "did you mean learning_rate?"),
        ("c.toml: unknown option zzz", "--help lists the options"),
    ]
    # a command line is written by hand: what does nothing there is a mistake
    assert errors(tmp_path, "", "--text_encoder_lr=1e-4", "--epoch", "1", "--clip_g", "x") == [
        ("unknown option --text_encoder_lr", "did you mean --learning_rate?"),
        ("unknown option --epoch", "it is an option of another script: leave it out"),
        ("unknown option --clip_g", "it is for SD3, which this script does not train"),
    ]


def test_a_file_for_another_model_family_is_one_line(tmp_path, caplog):
    said = errors(tmp_path, 'epoch = 1\nae = "ae.sft"\nt5 = "t5.sft"\nclip_g = ""\nlerning_rate = 2\nsteps = "x"\n')
    assert said == [
        (
            "c.toml is for FLUX, which this script does not train: it sets ae, t5",
            "give a file for the model that you train, or remove these lines",
        )
    ]
    assert caplog.messages == []


def test_what_the_screen_raises_stands_alone(tmp_path, caplog):
    def screen(options):
        raise OtherFamily("the model is of another family")

    assert errors(tmp_path, "epoch = 1\nnonsense = 2\n", screen=screen) == [("the model is of another family", None)]
    assert caplog.messages == []


def test_options_without_effect_are_named_together(tmp_path, caplog):
    parse(tmp_path, 'later = "x"\nlater_too = true\nmerged = []\n')
    assert caplog.messages == ["--later, --later_too: accepted, not implemented yet"]
    caplog.clear()
    parse(tmp_path, 'later = ""\nlater_too = 0\nhalf = true\n')
    assert caplog.messages == ["--half does nothing without --steps"]
    assert errors(tmp_path, 'merged = ["a"]') == [("--merged is not implemented yet", "leave it out")]


def test_a_flag_may_be_abbreviated_where_that_is_unique(tmp_path, caplog):
    assert parse(tmp_path, "", "--learn=2").learning_rate == 2.0
    assert caplog.messages == ["--learn is read as --learning_rate"]
    assert parse(tmp_path, "", "--sei", "a").sizes == "a"  # of another spelling
    assert parse(tmp_path, "", "--steps", "2").steps == 2  # in full, though it begins another
    assert errors(tmp_path, "", "--step", "2", "--lat") == [
        ("--step can be --steps or --steps_of_warmup", "write the option in full"),
        ("--lat can be --later or --later_too", "write the option in full"),
    ]
    # a file has no abbreviations: there they are misspellings
    assert errors(tmp_path, "learn = 2")[0][0] == "c.toml: unknown option learn"


def test_a_command_line_takes_a_file_off(tmp_path):
    assert parse(tmp_path, "steps = 5", "--steps", "0").steps is None
    options = parse_options(["--config_file", ""], [Training], program="x", description="d")
    assert options[Training] == Training()


def test_an_argument_from_the_file_is_not_said_to_be_used_where_the_command_line_has_the_list(tmp_path, caplog):
    assert parse(tmp_path, "plus_ratio = 4", "--network_args", "a=1").network_args == ("a=1",)
    assert caplog.messages == [f"{tmp_path}/c.toml: not used here: plus_ratio"]


_TEXTS = st.one_of(
    st.text(),  # all of Unicode, without lone surrogates
    st.text(alphabet="\\\"'xuU\x00\x1f\x7f\r\n\t[]#=.0a"),
    st.sampled_from(
        ["C:\\xavier", "\\\\xserver\\share", "C:\\users\\u0041", "D:\\new\\table", "\x1b[0m", "'''", "a\r"]
    ),
)


@given(
    text=_TEXTS,
    texts=st.lists(_TEXTS, max_size=3),
    rate=st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    count=st.integers(1, 2**63 - 1),
    half=st.booleans(),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_output_config_reads_back_the_same(tmp_path, text, texts, rate, count, half):
    """Windows paths above all: a writer that escapes \\x wrongly makes a file that cannot be read, or means another."""
    target = tmp_path / "out.toml"
    target.unlink(missing_ok=True)
    group = Training(rate, count, steps=count, network_args=tuple(texts), sizes=text, half=half)
    assert write_config_file(str(target), [group]) == str(target)
    findings = Findings()
    read = read_config_file(str(target), option_fields_by_name(), FOREIGN, findings)
    assert not findings.problems and not findings.warnings
    expected = {"learning_rate": rate, "num_cycles": count, "steps": count, "network_args": texts, "sizes": text}
    expected["half"] = half
    usual = {name: default for name, default in dataclasses.asdict(Training()).items() if name in expected}
    found = {name: each.value for name, each in read.items()}
    assert {**usual, "network_args": [], **found} == expected  # what is at its default is left out


def option_fields_by_name():
    return {field.name: field for field in option_fields(Training)}


def test_what_toml_cannot_hold_or_the_disk_refuses_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"--sizes '.*udcff' is not Unicode text"):
        write_config_file(str(tmp_path / "out.toml"), [Training(sizes="caf\udcff")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_config_file(str(tmp_path / "file" / "out.toml"), [Training()])
