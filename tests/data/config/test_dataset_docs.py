"""If these fail, docs/dataset_config.md lets users write files that mean something else than it says."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest

from library.cli.options import option_fields
from library.data.captions import final_caption
from library.data.config.config import SubsetConfig
from library.data.config.dataset_file import all_keys, read_dataset_config
from library.data.config.options import DatasetOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "dataset_config.md").read_text(encoding="utf-8")
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
TOML_EXAMPLES = [
    (f"{path.name}-{number}", text)
    for path in TEXTS
    for number, text in enumerate(re.findall(r"```toml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]
TOML_EXAMPLES += [(path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples").rglob("*.toml"))]


@pytest.mark.parametrize("text", [text for _, text in TOML_EXAMPLES], ids=[name for name, _ in TOML_EXAMPLES])
def test_every_example_is_valid(tmp_path: Path, text: str) -> None:
    document = tomllib.loads(text)
    if "datasets" in document:
        (tmp_path / "data.toml").write_text(text, encoding="utf-8")
        datasets, problems = read_dataset_config(DatasetOptions(dataset_config=str(tmp_path / "data.toml")))
        assert datasets and not problems


def test_the_examples_are_there() -> None:
    assert sum("[[datasets]]" in text for _, text in TOML_EXAMPLES) >= 5
    (metadata,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert {key for entry in json.loads(metadata).values() for key in entry} == {"caption", "tags", "train_resolution"}


def _rows(first_cell: str) -> dict[str, list[str]]:
    """The rows of the page's table whose header begins so, by their first cell."""
    table = re.search(rf"^\| {first_cell} \|.*\n\|-.*\n((\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table[1].splitlines()]
    return {cells[0].strip(): [cell.strip().replace("\\|", "|") for cell in cells] for cells in rows}


def test_every_key_stands_in_the_table_with_its_level_option_and_default() -> None:
    rows, keys = _rows("key"), all_keys()
    assert set(rows) == {f"`{key}`" for key in keys}
    flags = {field.spec.toml_key or field.name: field for field in option_fields(DatasetOptions)}
    for key, field in keys.items():
        _, level, option, default, _, _ = rows[f"`{key}`"]
        is_alone = key in ("image_dir", "conditioning_data_dir", "metadata_file", "shards", "is_reg")
        assert level == ("subset only" if is_alone else field.spec.toml_level), key
        assert option == (f"`{flags[key].flag}`" if key in flags and not is_alone else ""), key
        if isinstance(field.default, bool):
            assert default == str(field.default).lower(), key
        elif isinstance(field.default, (int, float)):
            assert float(default) == field.default, key
        elif field.default:
            assert default == f"`{field.default}`", key


def test_the_example_of_every_key_is_valid(tmp_path: Path) -> None:
    for key, field in all_keys().items():
        line = f"{key} = {_rows('key')[f'`{key}`'][4].strip('`')}\n"
        home = "[[datasets]]\n" if field.spec.toml_level == "dataset" else "[[datasets.subsets]]\n"
        text = "[[datasets]]\n[[datasets.subsets]]\n" + ("" if key in ("image_dir", "shards") else "image_dir = 'a'\n")
        (tmp_path / "data.toml").write_text(text.replace(home, home + line, 1))
        options = DatasetOptions(dataset_config=str(tmp_path / "data.toml"), resolution=(512, 512))
        assert not read_dataset_config(options)[1], line


def test_every_option_of_the_data_is_explained() -> None:
    names = {field.flag for field in option_fields(DatasetOptions)}
    names |= {"--cache_latents", "--cache_latents_to_disk", "--skip_cache_check", "--vae_batch_size"}
    assert [name for name in sorted(names) if name not in PAGE] == []


CAPTIONS = re.findall(r"^\| (`(.*?)`)? ?\| `(.*?)` \| `(.*?)` \|$", PAGE.split("<!-- captions -->")[1], re.MULTILINE)


@pytest.mark.parametrize(("keys", "caption", "trained"), [row[1:] for row in CAPTIONS])
def test_captions_become_what_the_table_says(keys: str, caption: str, trained: str) -> None:
    subset = SubsetConfig("docs", **tomllib.loads(f"keys = {{{keys}}}")["keys"])
    drawn = {final_caption(caption.replace("/", "|"), subset, random.Random(seed)) for seed in range(1000)}
    assert trained.strip() in drawn


def test_the_table_of_captions_is_there() -> None:
    assert len(CAPTIONS) == 12
