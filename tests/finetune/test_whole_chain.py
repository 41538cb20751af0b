"""If this fails, a user who follows the documented chain does not get from images to a trained model."""

import importlib
import json

from tests.captioning_models import write_blip, write_tagger
from tests.end_to_end.runs import BASE, copy_images
from tests.end_to_end.whole_models import changed_parts, read_model, train_whole

BUCKETS = ["--max_resolution", "64", "--min_bucket_reso", "32", "--max_bucket_reso", "128", "--bucket_reso_steps", "8"]


def test_from_images_to_a_trained_model(run, tmp_path, monkeypatch):
    """Captions and tags arrive in the metadata cleaned, and the latents train what the images would."""

    def do(script, *words):
        ended = run(importlib.import_module(f"finetune.{script}").JOB, *words)
        assert ended.status == 0, ended
        return ended

    folder = copy_images(tmp_path / "data", count=3) / "2_shs fox"
    for text in folder.glob("*.txt"):
        text.unlink()
    images, written = sorted(folder.glob("*.png")), tmp_path / "written"
    monkeypatch.chdir(folder.parent)
    do("make_captions", folder, "--caption_weights", write_blip(tmp_path / "blip"), "--max_length", 8)
    do("tag_images_by_wd14_tagger", folder, "--model_dir", write_tagger(tmp_path / "tagger"), "--thresh", 0.1)
    do("merge_captions_to_metadata", folder, "meta.json", "--full_path")
    do("merge_dd_tags_to_metadata", folder, "meta.json", "--full_path")
    do("clean_captions_and_tags", "meta.json", "clean.json")

    entries = json.loads((folder.parent / "clean.json").read_text())
    assert list(entries) == [str(image) for image in images]
    for image, entry in zip(images, entries.values(), strict=True):
        tags = image.with_suffix(".txt").read_text().strip()
        assert "red_mean" in tags and entry["tags"] == tags.replace("_", " ").replace("^ ^", "^_^")
        assert entry["caption"] and image.with_suffix(".caption").read_text().strip()

    do("prepare_buckets_latents", folder, "clean.json", "latents.json", BASE, *BUCKETS, "--full_path")
    described = {"train_data_dir": folder, "max_train_steps": 2, "save_model_as": "safetensors"}
    train_whole("fine_tune", None, written / "images", in_json="clean.json", **described)
    for image in images:
        image.unlink()
    train_whole("fine_tune", None, written / "latents", in_json="latents.json", **described)
    model, other = (read_model(written / name / "run.safetensors") for name in ("latents", "images"))
    assert changed_parts(model, other) == set()
    assert changed_parts(model, read_model(BASE)) == {"unet"}  # it was trained
