"""Without these transparency does not weigh what is learned, or one damaged image decides it by where latents lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from library.cli.errors import UserError
from tests.end_to_end.runs import assert_same, logged, train

CACHING = {"on the fly": {}, "in memory": {"cache_latents": True}, "in files": {"cache_latents_to_disk": True}}


def _set_opacity(data_dir: Path, opacity: int) -> None:
    for path in data_dir.glob("*/*.png"):
        image = Image.open(path).convert("RGB")
        image.putalpha(opacity)
        image.save(path)


@pytest.mark.parametrize("caching", CACHING)
def test_the_loss_is_as_large_as_the_images_are_opaque(data_dir: Path, tmp_path: Path, caching: str) -> None:
    options = {**CACHING[caching], "alpha_mask": True, "max_train_steps": 1}
    losses = {}
    for opacity in (255, 51, 0):
        _set_opacity(data_dir, opacity)
        train(data_dir, tmp_path / str(opacity), **options)
        losses[opacity] = logged(tmp_path / str(opacity))[0][1]
    assert losses[51] == pytest.approx(losses[255] / 5, rel=1e-5)
    assert losses[0] == 0 < losses[255]


def _cut(data_dir: Path) -> Path:
    path = sorted(data_dir.glob("*/*.png"))[1]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def test_a_run_goes_on_without_a_bad_image_wherever_latents_lie(data_dir: Path, tmp_path: Path, caplog) -> None:
    bad = _cut(data_dir)
    weights = {}
    for name, options in CACHING.items():
        caplog.clear()
        weights[name] = train(data_dir, tmp_path / name, skip_bad_images=True, **options)
        assert any(bad.name in record.getMessage() for record in caplog.records), name
    assert_same(weights["in memory"], weights["on the fly"])
    assert_same(weights["in files"], weights["on the fly"])


@pytest.mark.parametrize("caching", CACHING)
def test_a_bad_image_ends_the_run_unless_it_may_go_on(data_dir: Path, tmp_path: Path, caching: str) -> None:
    bad = _cut(data_dir)
    with pytest.raises(UserError, match=f"{bad.name} cannot be read"):
        train(data_dir, tmp_path / "out", **CACHING[caching])
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("caching", CACHING)
def test_mask_images_weigh_the_loss_wherever_latents_lie(data_dir: Path, tmp_path: Path, caching: str) -> None:
    """Also when they change: latents in files are not those of the masks."""
    (folder,) = data_dir.iterdir()
    (tmp_path / "data.toml").write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'\nconditioning_data_dir = '{tmp_path}/masks'\n"
    )
    options = {**CACHING[caching], "train_data_dir": None, "dataset_config": tmp_path / "data.toml"}
    losses = {}
    (tmp_path / "masks").mkdir()
    for value in (255, 51, 0):
        for path in folder.glob("*.png"):
            Image.new("L", Image.open(path).size, value).save(tmp_path / "masks" / path.name)
        train(None, tmp_path / str(value), masked_loss=True, max_train_steps=1, **options)
        losses[value] = logged(tmp_path / str(value))[0][1]
    assert losses[51] == pytest.approx(losses[255] / 5, rel=1e-5)
    assert losses[0] == 0 < losses[255]


def test_masks_of_concept_folders_weigh_the_loss(data_dir: Path, tmp_path: Path) -> None:
    (folder,) = data_dir.iterdir()
    losses = {}
    for value in (255, 51):
        masks = tmp_path / f"masks{value}"
        (masks / folder.name).mkdir(parents=True)
        for path in folder.glob("*.png"):
            Image.new("L", Image.open(path).size, value).save(masks / folder.name / path.name)
        train(data_dir, tmp_path / str(value), conditioning_data_dir=masks, masked_loss=True, max_train_steps=1)
        losses[value] = logged(tmp_path / str(value))[0][1]
    assert losses[51] == pytest.approx(losses[255] / 5, rel=1e-5) and losses[255] > 0
