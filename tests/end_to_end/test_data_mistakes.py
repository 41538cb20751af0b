"""Whatever is wrong with a description of data is said in one clear line before anything is trained or written."""

import json
import shutil

import pytest
from safetensors import safe_open

from library.cli.entry import run_entry
from tests.end_to_end.runs import IMAGES, arguments, train
from tests.end_to_end.test_mistakes import answer

SUBSET = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nclass_tokens = 'fox'\nimage_dir = '{dir}/img'\n"
METADATA = (
    "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/img'\nmetadata_file = '{dir}/meta.json'\n"
)
SECOND = "[[datasets.subsets]]\nimage_dir = '{dir}/more'\n"
BAD_INPUT = {
    "missing folder": (SUBSET.replace("img", "none"), ["datasets[0].subsets[0]", "none does not exist"]),
    "empty folder": (SUBSET.replace("img", "empty"), ["empty contains no images"]),
    "file as folder": (SUBSET.replace("img", "meta.json"), ["meta.json is a file"]),
    "unreadable caption": (SUBSET.replace("img", "latin"), ["a.caption is not UTF-8 text: byte 3"]),
    "unreadable image": (SUBSET.replace("img", "bad"), ["bad/a.png", "empty"]),
    "wrong key": (SUBSET + "num_repeat = 2", ["unknown key datasets[0].subsets[0].num_repeat"]),
    "wrong type": (SUBSET + SECOND + "num_repeats = 'x'", ["datasets[0].subsets[1].num_repeats = 'x' is not valid"]),
    "not divisible": (SUBSET.replace("64", "60"), ["datasets[0].resolution 60x60 is not a multiple of 8"]),
    "min > max": (
        "[general]\nenable_bucket = true\nmin_bucket_reso = 1024\nmax_bucket_reso = 512\n" + SUBSET,
        ["datasets[0].min_bucket_reso 1024 is larger than max_bucket_reso 512"],
    ),
    "zero repeats": (SUBSET + "num_repeats = 0", ["datasets[0].subsets[0].num_repeats = 0 is not valid"]),
    "mixed kinds": (METADATA + SECOND, ["datasets[0] mixes", "datasets[0].subsets[0]", "datasets[0].subsets[1]"]),
    "regularisation by metadata": (METADATA + "is_reg = true", ["is_reg", "metadata_file"]),
    "invalid TOML": (SUBSET + "num_repeats = = 2", ["line 6, column 15"]),
    "invalid JSON metadata": (METADATA.replace("meta.json", "broken.json"), ["broken.json", "line 2, column 8"]),
    "metadata of gone images": (METADATA.replace("meta.j", "gone.j"), ["2 images not found: x, y.png"]),
    "no such metadata": (METADATA.replace("meta.json", "none.json"), ["metadata_file", "none.json does not exist"]),
    "no image large enough": (
        SUBSET.replace("= 64", "= 64\nskip_image_resolution = 2048"),
        ["datasets[0]", "skip_image_resolution [2048, 2048] skips all images"],
    ),
    "regularisation alone": (SUBSET + "is_reg = true", ["datasets[0] has regularisation images only"]),
}


@pytest.fixture
def folder(tmp_path):
    image = IMAGES / "fox_01.png"
    for name in ("img", "more", "latin", "bad", "empty"):
        (tmp_path / name).mkdir()
    for name in ("img", "more", "latin"):
        shutil.copy(image, tmp_path / name / "a.png")
        (tmp_path / name / "a.caption").write_bytes(b"caf\xe9" if name == "latin" else b"a fox")
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    (tmp_path / "meta.json").write_text('{"a": {"caption": "a fox"}}')
    (tmp_path / "broken.json").write_text('{\n "a": {,}\n}')
    (tmp_path / "gone.json").write_text('{"x": {"caption": "a fox"}, "y.png": {"tags": "fox"}}')
    return tmp_path


def _argv(folder, text, **options):
    (folder / "data.toml").write_text(text.replace("{dir}", folder.as_posix()))
    none = dict.fromkeys(("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"))
    none |= {"caption_extension": None, "dataset_config": folder / "data.toml"}
    return arguments(None, folder / "out", **none, **options)


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_in_one_line(name, folder, capsys):
    import train_network

    text, named = BAD_INPUT[name]
    before = sorted(folder.rglob("*"))
    argv = _argv(folder, text)
    status = run_entry(lambda: train_network.train(argv))
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in said, said
    assert all(part in errors[0] for part in named), said
    hint = said.split(errors[0])[1].splitlines()[1]
    assert hint.startswith("  ") and len(hint) > 10
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "data.toml"])


def test_mistakes_of_several_datasets_come_together_without_heavy_libraries(folder):
    text = METADATA.replace("meta.json", "broken.json") + "batch_size = 2\n"
    text += SUBSET.replace("img", "none") + "color_aug = true\n"
    status, said, errors = answer(_argv(folder, text + "[[datasets]]\nresolution = 0\n", cache_latents=True))
    assert (status, said) == (2, "loaded: []\n"), errors
    parts = ("line 2, column 8", "none does not exist", "datasets[2].resolution = 0", "datasets[2] has no")
    parts += ("--cache_latents cannot be used with datasets[1].subsets[0].color_aug", "batch_size is in the wrong")
    for part in parts:
        assert errors.count(part) == 1, (part, errors)


def test_folders_and_metadata_train_in_one_run(folder):
    text = "[[datasets]]\nresolution = 64\nbatch_size = 1\n[[datasets.subsets]]\nimage_dir = '{dir}/more'\n" + METADATA
    (folder / "data.toml").write_text(text.replace("{dir}", folder.as_posix()))
    options = dict.fromkeys(("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"))
    options |= {"caption_extension": None, "dataset_config": folder / "data.toml", "max_train_steps": 2}
    weights = train(None, folder / "out", **options)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_up" in name)
    with safe_open(folder / "out" / "run.safetensors", "pt") as file:
        datasets = json.loads(file.metadata()["ss_datasets"])
    assert [each["is_dreambooth"] for each in datasets] == [True, False]
    assert datasets[1]["tag_frequency"] == {"meta.json": {"a fox": 1}}
