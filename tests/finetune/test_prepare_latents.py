"""If this fails, latents made before training are others than training makes, or some are lost without a word."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from library.cli.jobs.outcome import Outcome, together
from library.cli.parser import parse_options
from library.metadata.jobs import PREPARE
from tests.end_to_end.runs import BASE, IMAGES, train

BUCKETS = ["--max_resolution", "64", "--min_bucket_reso", "32", "--max_bucket_reso", "128", "--bucket_reso_steps", "8"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Five images and their metadata file, in the current folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for image in sorted(IMAGES.glob("*.png"))[:5]:
        shutil.copy(image, folder)
    entries = {path.stem: {"caption": f"a {path.stem}"} for path in sorted(folder.iterdir())}
    (tmp_path / "meta.json").write_text(json.dumps({**entries}))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def prepare(run):
    def prepare(*words, source="meta.json"):
        return run(PREPARE, "images", source, "out.json", BASE, *BUCKETS, *words)

    return prepare


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "made_from.json"}


def read(path):
    return json.loads(path.read_text())


def test_files_hold_what_training_caches(data, prepare, tmp_path):
    """The formats of both are read here with NumPy; the bucket in the metadata is that of the latents."""
    ended = prepare("--flip_aug")
    assert ended.status == 0 and ended.lines[-1] == "5 prepared"
    assert any("64x64" in line for line in ended.lines)  # the table of buckets
    train(data, tmp_path / "run", in_json="meta.json", flip_aug=True, cache_latents_to_disk=True, max_train_steps=1)
    entries = read(tmp_path / "out.json")
    assert {key: entry["caption"] for key, entry in entries.items()} == {key: f"a {key}" for key in entries}
    for stem, entry in entries.items():
        (path,) = data.glob(f"{stem}_*_sd.npz")
        cached, width, height = arrays_of(path), *entry["train_resolution"]
        size = f"{height // 8}x{width // 8}"
        for file, name in ((f"{stem}.npz", "latents"), (f"{stem}_flip.npz", "latents_flipped")):
            own = arrays_of(data / file)
            assert own.keys() == {"latents", "original_size", "crop_ltrb"}
            assert own["latents"].dtype == np.float32 and own["latents"].shape == (4, height // 8, width // 8)
            np.testing.assert_array_equal(own["latents"], cached[f"{name}_{size}"])
            np.testing.assert_array_equal(own["original_size"], cached[f"original_size_{size}"])
            np.testing.assert_array_equal(own["crop_ltrb"], cached[f"crop_ltrb_{size}"])


def test_images_that_fail_are_named_and_the_others_are_prepared(data, prepare, tmp_path):
    first, second, third, *_ = sorted(data.iterdir())
    first.write_bytes(b"not an image")
    second.unlink()
    content = third.read_bytes()
    third.write_bytes(content[:200] + bytes(200) + content[400:])  # what a header and an end can show is as it was
    before = read(tmp_path / "meta.json")
    (tmp_path / "meta.json").write_text(json.dumps({**before, third.stem: {"tags": "kept", "other": [1]}}))
    ended = prepare()
    assert ended.status == 1 and ended.lines[-1] == "2 prepared, 3 failed"
    assert all(any(path.stem in line for line in ended.lines) for path in (first, second, third))
    assert any("3 entries have no latents" in line for line in ended.lines)
    entries = read(tmp_path / "out.json")
    assert list(entries) == list(before) and entries[third.stem] == {"tags": "kept", "other": [1]}
    assert sum("train_resolution" in entry for entry in entries.values()) == len(list(data.glob("*.npz"))) == 2


def test_with_skip_existing_only_what_is_not_there_any_more_is_made(data, prepare, tmp_path):
    prepare("--flip_aug")
    expected = read(tmp_path / "out.json")
    broken, changed, unflipped, gone, kept = sorted(data.glob("*.png"))
    broken.with_suffix(".npz").write_bytes(b"PK")
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    (data / f"{unflipped.stem}_flip.npz").unlink()
    gone.unlink()
    written = {path: path.stat().st_mtime_ns for path in data.glob("*.npz")}
    os.replace("out.json", "made.json")
    ended = prepare("--flip_aug", "--skip_existing", source="made.json")
    assert ended.lines[-1] == "3 prepared, 2 skipped (they have latents)"
    assert read(tmp_path / "out.json") == expected
    remade = {path.name for path in data.glob("*.npz") if written.get(path) != path.stat().st_mtime_ns}
    assert remade == {
        f"{broken.stem}.npz", f"{changed.stem}.npz", f"{changed.stem}_flip.npz", f"{unflipped.stem}_flip.npz"
    }  # fmt: skip
    # other buckets, whatever the metadata says of those that are there
    again = prepare("--skip_existing", "--max_resolution", "48", source="made.json")
    assert again.lines[-1] == "4 prepared, 1 skipped (they have latents)"


def test_latents_of_another_program_are_kept_where_their_size_fits(data, prepare):
    prepare()
    for path in data.glob("*.npz"):
        np.savez(path, **arrays_of(path))
    assert prepare("--skip_existing").lines[-1] == "0 prepared, 5 skipped (they have latents)"


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_processes_together_make_what_one_makes(data, prepare, tmp_path, monkeypatch, batch_size):
    prepare("--flip_aug", "--batch_size", batch_size)
    alone = {path.name: path.read_bytes() for path in data.glob("*.npz")}
    for path in data.glob("*.npz"):
        path.unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["images", "meta.json", "out.json", str(BASE), *BUCKETS, "--flip_aug", "--skip_existing"]
    options = parse_options([*argv, "--batch_size", batch_size], PREPARE.option_groups, program="p", description="d")
    outcomes = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        outcomes.append(Outcome())
        PREPARE.run(options, outcomes[-1])
    assert all(outcome.done > 1 for outcome in outcomes)
    whole = together(outcomes)
    assert (whole.done, whole.status) == (5, 0)
    assert whole.results == {key: entry["train_resolution"] for key, entry in read(tmp_path / "out.json").items()}
    assert {path.name: path.read_bytes() for path in data.glob("*.npz")} == alone


def test_images_that_would_share_a_file_of_latents_are_an_error(data, prepare, tmp_path):
    first = sorted(data.iterdir())[0]
    Image.open(first).convert("RGB").save(first.with_suffix(".jpg"))
    entries = {f"images/{first.name}": {}, f"images/{first.stem}.jpg": {}}
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    ended = prepare("--full_path")
    assert ended.status == 2 and "of several images" in ended.error[0]
    assert not (tmp_path / "out.json").exists() and list(data.glob("*.npz")) == []


def test_images_without_an_entry_are_named(data, prepare, tmp_path):
    stem, *_ = entries = read(tmp_path / "meta.json")
    del entries[stem]
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    ended = prepare()
    assert ended.status == 0 and any(f"no latents are made of them: images/{stem}.png" in line for line in ended.lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_resolution", "512", "--max_bucket_reso", "256"], "--max_bucket_reso 256 is smaller than"),
        (["--alpha_mask", "x"], "--alpha_mask is not possible here"),
        (["--mixed_precision", "fp16", "--device", "cpu"], "needs a GPU"),
        (["--device", "cuda:999"], "PyTorch finds"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_cannot_be_are_errors(data, prepare, tmp_path, words, said):
    ended = prepare(*words)
    assert ended.status == 2 and said in ended.error[0] and ended.error[1]
    assert not (tmp_path / "out.json").exists()


def test_a_vae_alone_encodes_as_the_model_it_is_of(data, prepare, run, tmp_path):
    prepare()
    alone = {path.name: path.read_bytes() for path in data.glob("*.npz")}
    assert run(PREPARE, "images", "meta.json", "out.json", BASE / "vae", *BUCKETS).status == 0
    assert {path.name: path.read_bytes() for path in data.glob("*.npz")} == alone
    missing = run(PREPARE, "images", "meta.json", "out.json", tmp_path / "nowhere", *BUCKETS)
    assert missing.status == 2 and "MODEL_NAME_OR_PATH" in missing.error[0]
