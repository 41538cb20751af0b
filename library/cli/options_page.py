"""The documentation pages of all options, made from their declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from library.cli.options import OptionField, OptionGroup, option_fields


def options_page(program: str, groups: Sequence[type[OptionGroup]]) -> str:
    """A Markdown page with one table for each group of options."""
    return "\n\n".join([*_introduction(program), *_tables(groups, "##")]) + "\n"


def scripts_page(title: str, scripts: Mapping[str, Sequence[type[OptionGroup]]]) -> str:
    """A Markdown page of several scripts, with one table for each group of options of each."""
    parts = _introduction(title)
    for program, groups in scripts.items():
        parts += [f"## {program}", *_tables(groups, "###")]
    return "\n\n".join(parts) + "\n"


def _introduction(of: str) -> list[str]:
    return [
        f"# Options of {of}",
        "Made from the declarations in the code; `docs/make_options.py` writes it. Every option can stand in a"
        " `--config_file` under its name without dashes.",
        "Values are read as other programs write them: 0 and 1 for a switch, 1.0 for a whole number, numbers as text."
        ' A value that means "off" is as if the option were not given: `""`; for an option without a value of its own,'
        " or with 0 or nothing as its default, also `false` and `none`; and what the table says.",
    ]


def _tables(groups: Sequence[type[OptionGroup]], heading: str) -> list[str]:
    head = "| option | value | default | what it does |\n|---|---|---|---|"
    rows = {owner.GROUP: "\n".join(map(_row, option_fields(owner))) for owner in groups}
    return [f"{heading} {title}\n\n{head}\n{text}" for title, text in rows.items()]


def _row(field: OptionField) -> str:
    names = "<br>".join(f"`{name}`" for name in field.flags)
    if field.spec.choices:
        value = ", ".join(f"`{choice}`" for choice in field.spec.choices)
    elif field.spec.parse is not None:
        value = (field.spec.metavar or "text").lower()
    else:
        value = {bool: "", int: "whole number", float: "number", str: "text"}[field.kind]
        value += ", one or more" if field.is_list else ""
    value = value.replace("|", "\\|") + _off_text(field)
    default = "required" if field.spec.required else _default(field)
    cells = (names, value, default, field.help.replace("|", "\\|").replace("<", "&lt;"))
    return "| " + " | ".join(cells) + " |"


def _off_text(field: OptionField) -> str:
    return "; 0: off" if any(value == 0 and value is not False for value in field.off_values) else ""


def _default(field: OptionField) -> str:
    if field.kind is bool or field.default in (None, ()):
        return ""
    return f"`{field.default}`"
