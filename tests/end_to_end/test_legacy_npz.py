"""If this fails, latents that were prepared before train something else than the images they were made from."""

import json

import numpy as np

from tests.end_to_end.runs import assert_same, copy_images, train

OPTIONS = {"max_train_steps": 4, "resolution": 64}


def test_legacy_npz_without_images_train_what_the_images_do(data_dir, tmp_path):
    folder = copy_images(tmp_path / "images") / "2_shs fox"
    entries = {}
    for image in folder.glob("*.png"):
        entries[image.name] = {"caption": image.with_suffix(".txt").read_text()}
    described = {"in_json": tmp_path / "meta.json", "dataset_repeats": 2, **OPTIONS}
    (tmp_path / "meta.json").write_text(json.dumps(dict(sorted(entries.items()))))
    by_folders = train(data_dir, tmp_path / "a", **OPTIONS)
    by_metadata = train(folder, tmp_path / "b", cache_latents_to_disk=True, **described)
    assert_same(by_folders, by_metadata)

    for name, entry in entries.items():
        stem = name.removesuffix(".png")
        (cache,) = folder.glob(f"{stem}_*_sd.npz")
        with np.load(cache) as file:
            (key,) = (key for key in file.files if key.startswith("latents_"))
            height, width = map(int, key.removeprefix("latents_").split("x"))
            size = file[key.replace("latents", "original_size")]
            np.savez(folder / f"{stem}.npz", latents=file[key], original_size=size, crop_ltrb=np.zeros(4))
        entry["train_resolution"] = [8 * width, 8 * height]
        cache.unlink()
        (folder / name).unlink()
    (tmp_path / "meta.json").write_text(json.dumps(dict(sorted(entries.items()))))
    assert_same(by_folders, train(folder, tmp_path / "c", **described))
    assert_same(by_folders, train(folder, tmp_path / "d", cache_latents=True, **described))
