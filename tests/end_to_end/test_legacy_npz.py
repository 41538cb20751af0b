"""If this fails, latents that were prepared before train something else than the images they were made from."""

import json

from library.cli.jobs.job import run_job
from library.metadata.jobs import PREPARE
from tests.end_to_end.runs import BASE, assert_same, copy_images, train

OPTIONS = {"max_train_steps": 4, "resolution": 64}
BUCKETS = ["--max_resolution", "64", "--min_bucket_reso", "32", "--max_bucket_reso", "128", "--bucket_reso_steps", "8"]


def test_prepared_latents_without_images_train_what_the_images_do(data_dir, tmp_path):
    folder = copy_images(tmp_path / "images") / "2_shs fox"
    entries = {image.name: {"caption": image.with_suffix(".txt").read_text()} for image in sorted(folder.glob("*.png"))}
    described = {"in_json": tmp_path / "meta.json", "dataset_repeats": 2, **OPTIONS}
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    by_folders = train(data_dir, tmp_path / "a", **OPTIONS)
    assert_same(by_folders, train(folder, tmp_path / "b", cache_latents_to_disk=True, **described))

    prepared = tmp_path / "prepared.json"
    paths = [str(path) for path in (folder, tmp_path / "meta.json", prepared, BASE)]
    assert run_job(PREPARE, [*paths, *BUCKETS]) == 0
    images = {image: image.read_bytes() for image in folder.glob("*.png")}
    for path in [*images, *folder.glob("*_sd.npz")]:
        path.unlink()
    assert_same(by_folders, train(folder, tmp_path / "c", **described | {"in_json": prepared}))
    assert_same(by_folders, train(folder, tmp_path / "d", cache_latents=True, **described | {"in_json": prepared}))

    # a metadata file that does not say the size of latents: they are not looked at
    for image, content in images.items():
        image.write_bytes(content)
        image.with_suffix(".npz").write_bytes(b"of something else")
    assert_same(by_folders, train(folder, tmp_path / "e", **described))
