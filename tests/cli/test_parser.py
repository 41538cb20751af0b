"""A user who mistypes options or values gets all errors at once, each with a hint."""

import dataclasses
import os
import threading
from typing import ClassVar

import pytest

from library.cli.checks import Check
from library.cli.documents import read_toml
from library.cli.errors import UserError, UserErrors
from library.cli.options import option
from library.cli.parser import OutputConfigWritten, parse_options


@dataclasses.dataclass(frozen=True)
class Rates:
    GROUP: ClassVar[str] = "Rates"

    rate: float = option(0.5, help="a rate", minimum=0)
    steps: int | None = option(help="how many", above=0)
    names: tuple[str, ...] = option((), help="names")
    verbose: bool = option(False, help="say more")
    kind: str = option("a", help="which", choices=("a", "b"))
    extension: str = option(".x", help="ending", aliases=("extention",))
    nothing: str | None = option(help="once of use")

    def check(self):
        if self.kind == "b" and not self.verbose:
            yield UserError("--kind b needs --verbose", hint="add --verbose")


@dataclasses.dataclass(frozen=True)
class Needed:
    GROUP: ClassVar[str] = "Needed"

    folder: str | None = option(help="a folder", required=True)


def parse(*argv, checks=(), groups=(Rates,)):
    return parse_options(argv, groups, program="x", description="d", checks=checks)


def messages(error):
    return [(e.message, e.hint) for e in (error.errors if isinstance(error, UserErrors) else [error])]


def test_command_line_values_are_typed():
    rates = parse("--rate", "1e-3", "--steps=7", "--names", "p", "q", "--verbose", "--extention", ".y")[Rates]
    assert rates == Rates(rate=0.001, steps=7, names=("p", "q"), verbose=True, kind="a", extension=".y")


def test_command_line_wins_over_file_and_file_over_default(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('rate = 2\n[section.deeper]\nsteps = 3\nverbose = true\nnames = ["a"]\nextention = ".z"\n')
    rates = parse("--config_file", str(file), "--rate", "9")[Rates]
    assert rates == Rates(rate=9.0, steps=3, names=("a",), verbose=True, extension=".z")
    # the ending may be left out
    assert parse("--config_file", str(tmp_path / "c"))[Rates].rate == 2.0


def test_all_problems_are_reported_together(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('steps = "many"\nrat = 1\nverbose = 2\n')
    with pytest.raises(UserErrors) as caught:
        parse("--config_file", str(file), "--kind", "c", "--verbosy", "--rate", "nan", groups=(Rates, Needed))
    found = messages(caught.value)
    assert ("unknown option --verbosy", "did you mean --verbose?") in found
    assert (f"{file}: unknown option rat", "did you mean rate?") in found
    assert (f"{file}: steps = 'many' is not valid", "give a whole number") in found
    assert (f"{file}: verbose = 2 is not valid", "give true or false") in found
    assert ("--kind c is not valid", "give one of a, b") in found
    assert ("--rate nan is not valid", "give a finite number") in found
    assert ("--folder is missing", "it is required: a folder") in found
    assert len(found) == 7


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--rate", "-1"], "give 0 or more"),
        (["--steps", "-3"], "give more than 0"),
        (["--steps", "1.5"], "give a whole number"),
        (["--steps"], "x --help lists the options"),
        (["--n", "3", "--e", "x"], "write the option in full"),
        (["stray"], "every value follows its --option"),
        (["--kind", "b"], "add --verbose"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(argv, hint):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert messages(caught.value)[0][1] == hint


def test_an_empty_list_is_none():
    """Scripts pass `--names $NAMES` whether they have any or not."""
    assert parse("--names", "--steps", "3")[Rates].names == ()


def test_a_list_given_twice_is_the_last_one_and_that_is_said(caplog):
    """Somebody who gives each value a flag of its own would train without the first."""
    assert parse("--names", "a", "b", "--names", "c")[Rates].names == ("c",)
    assert "--names is given twice: a b is not used" in caplog.text


def test_checks_run_beside_other_problems_but_not_on_broken_groups():
    def check_rates(options):
        yield UserError(f"rate {options[Rates].rate} is bad")

    def check_needed(options):
        yield UserError(f"folder {options[Needed].folder} is bad")

    with pytest.raises(UserErrors) as caught:
        parse(
            "--rate",
            "x",
            "--folder",
            "f",
            checks=[Check("options", check_rates), Check("options", check_needed)],
            groups=(Rates, Needed),
        )
    assert [message for message, _ in messages(caught.value)] == ["--rate x is not valid", "folder f is bad"]


def test_output_config_writes_a_file_that_reads_back_the_same(tmp_path):
    file = tmp_path / "sub" / "out.toml"
    with pytest.raises(OutputConfigWritten):
        parse("--config_file", str(file), "--output_config", "--rate", "0.25", "--names", "p", groups=(Rates, Needed))
    with pytest.raises(UserError, match="--folder is missing"):
        parse("--config_file", str(file), groups=(Rates, Needed))
    assert parse("--config_file", str(file), "--folder", "f", groups=(Rates, Needed))[Rates] == Rates(
        rate=0.25, names=("p",)
    )
    with pytest.raises(UserError, match="exists already"):
        parse("--config_file", str(file), "--output_config")
    with pytest.raises(UserError, match="needs --config_file"):
        parse("--output_config")


def test_toml_errors_say_line_and_column(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('a = 1\nb = "C:\\images"\n')
    with pytest.raises(UserError) as caught:
        read_toml(file, "--dataset_config")
    assert "line 2, column" in caught.value.message and "--dataset_config" in caught.value.message
    assert "single quotes" in caught.value.hint
    with pytest.raises(UserError, match="is a folder"):
        read_toml(tmp_path, "--config_file")
    with pytest.raises(UserError, match="does not exist"):
        read_toml(tmp_path / "none.toml", "--config_file")
    file.write_bytes(b"a = '\xff'")
    with pytest.raises(UserError, match="not UTF-8"):
        read_toml(file, "--config_file")


@dataclasses.dataclass(frozen=True)
class MoreRates(Rates):
    decay: float = option(0.0, help="added by one script")


def test_a_group_that_a_script_extends_is_found_under_both_names():
    options = parse("--decay", "2", "--rate", "3", groups=(MoreRates,))
    assert options[Rates] is options[MoreRates] and (options[Rates].rate, options[MoreRates].decay) == (3.0, 2.0)
    assert [type(group) for group in options].count(MoreRates) == 1
    # and a check that reads the part is left out when the whole has problems
    with pytest.raises(UserError) as caught:
        check = Check("options", lambda options: [UserError(str(options[Rates].rate))])
        parse("--decay", "many", groups=(MoreRates,), checks=[check])
    assert [message for message, _ in messages(caught.value)] == ["--decay many is not valid"]


@dataclasses.dataclass(frozen=True)
class Precision:
    GROUP: ClassVar[str] = "Precision"

    precision: str = option("no", help="h", choices=("no", "half"), off=(False,), variable="OUTER_PRECISION")


@pytest.mark.parametrize(
    ("argv", "outer", "expected", "warning"),
    [
        ([], "half", "half", None),
        ([], "no", "no", None),  # as a launcher exports where nothing was said
        ([], "", "no", None),
        ([], "fp8", "no", "OUTER_PRECISION=fp8 is not used: --precision does not have it"),
        (["--precision", "half"], "half", "half", None),
        (["--precision", "half"], "no", "half", None),
        (["--precision", "no"], "half", "no", "--precision no is used, not half of the environment (OUTER_PRECISION)"),
        (["--precision", ""], "half", "half", None),
    ],
)
def test_an_environment_variable_gives_what_is_not_given(argv, outer, expected, warning, monkeypatch, caplog):
    """`accelerate launch --mixed_precision bf16 train_network.py` would train in float32 without a word."""
    monkeypatch.setenv("OUTER_PRECISION", outer)
    assert parse(*argv, groups=(Precision,))[Precision].precision == expected
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ([] if warning is None else [warning])


@dataclasses.dataclass(frozen=True)
class Paths:
    GROUP: ClassVar[str] = "Paths"

    folder: str | None = option(help="h", metavar="FOLDER")


@pytest.mark.parametrize("name", ["a" * 256, "a/" + "\u00e9" * 128 + "/b", "a\0b"])
def test_a_path_that_no_file_can_have_is_an_error_and_no_traceback(name):
    """Names have at most 255 bytes: 128 accented letters are 256."""
    with pytest.raises(UserError, match="is not valid") as caught:
        parse("--folder", name, groups=(Paths,))
    assert "at most 255 bytes" in caught.value.hint
    with pytest.raises(UserError, match="is not valid"):
        parse("--config_file", name)
    assert parse("--folder", "a/" + "a" * 255, groups=(Paths,))[Paths].folder


def test_a_configuration_may_come_from_a_pipe(tmp_path):
    """As from `--config_file <(command)`."""
    pipe = tmp_path / "c.toml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("rate = 3\n",))
    writer.start()
    assert parse("--config_file", str(pipe))[Rates].rate == 3.0
    writer.join()
