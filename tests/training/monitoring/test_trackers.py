"""If these fail, the curves of a run are not where its user looks for them, or a service ends a run."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from library.cli.errors import UserError
from library.training.monitoring.options import LoggingOptions
from library.training.monitoring.trackers import TrackerSettings, make_tracker
from tests import programs

IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def fill(tracker) -> None:
    tracker.scalars({"loss/current": 0.5, "lr/unet": 1e-4}, 1)
    tracker.scalars({"loss/current": 0.25}, 2)
    tracker.image("sample/00", IMAGE, 2, "a cat")
    tracker.close()


def test_tensorboard_reads_curves_images_and_options(tmp_path):
    options = {"learning_rate": 1e-4, "network_module": "networks.lora"}
    arguments = {"filename_suffix": ".mine"}
    settings = TrackerSettings(tmp_path / "run", "", options=options, arguments=arguments)
    tracker = make_tracker(["tensorboard"], {"tensorboard": settings})
    assert f"tensorboard --logdir {tmp_path}" in tracker.found_at
    fill(tracker)
    (file,) = (tmp_path / "run").iterdir()
    assert file.name.endswith(".mine")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/current")] == [(1, 0.5), (2, 0.25)]
    (image,) = events.Images("sample/00")
    assert (image.step, image.width, image.height) == (2, 4, 4)
    (text,) = events.Tensors("options/text_summary")
    assert b"| network_module | networks.lora |" in text.tensor_proto.string_val[0]


WANDB_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from library.training.monitoring.trackers import TrackerSettings, make_tracker
from tests.training.monitoring.test_trackers import fill
settings = TrackerSettings(
    Path({folder!r}), "my project", "my run", "0" * 40, {{"notes": "of mine"}}, {{"learning_rate": 1e-4}}
)
tracker = make_tracker(["wandb"], {{"wandb": settings}})
Path({folder!r}, "found_at").write_text(tracker.found_at)
fill(tracker)
"""


def read_log(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log (github.com/google/leveldb, doc/log_format.md) behind wandb's header of 7 bytes."""
    block, header, at, record = 32768, 7, 7, b""
    while at + header <= len(data):
        if block - at % block < header:  # the rest of a block is padding
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)  # behind a checksum
        record += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_wandb_keeps_curves_images_and_options_in_offline_mode(tmp_path):
    from wandb.proto import wandb_internal_pb2

    script = tmp_path / "script.py"
    script.write_text(WANDB_RUN.format(root=str(programs.ROOT), folder=str(tmp_path)))
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = programs.run([str(script)], env=environment)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert (
        "wandb sync" in (tmp_path / "found_at").read_text() and str(file.parent) in (tmp_path / "found_at").read_text()
    )
    records = [wandb_internal_pb2.Record.FromString(record) for record in read_log(file.read_bytes())]
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name, run.notes) == ("my project", "my run", "of mine")
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["learning_rate"] == 1e-4
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["loss/current"]) for row in rows] == [(1, 0.5), (2, 0.25)]
    assert rows[1]["sample/00/caption"] == "a cat" and rows[0]["lr/unet"] == 1e-4
    (image,) = tmp_path.glob("wandb/offline-run-*/files/media/images/sample/*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(image)), np.asarray(IMAGE))
    assert not any(
        "0" * 40 in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.suffix == ".log"
    )


def test_arguments_that_a_tracker_does_not_know_are_named(tmp_path):
    settings = TrackerSettings(tmp_path, "", arguments={"flush": 3})
    with pytest.raises(UserError, match=r"--log_tracker_config, \[tensorboard\]: .*flush"):
        make_tracker(["tensorboard"], {"tensorboard": settings})


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)


def said(**options) -> list[str]:
    return [each.message if isinstance(each, UserError) else each for each in LoggingOptions(**options).check()]


def test_what_wandb_lacks_is_said_before_anything_is_loaded(no_key, monkeypatch, tmp_path):
    assert said(log_with="wandb") == ["--log_with wandb: there is no access key"]
    assert said(log_with="wandb", wandb_api_key="x") == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert said(log_with="wandb") == []
    (tmp_path / "home" / ".netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert said(log_with="wandb") == []


def test_what_does_nothing_is_said(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert said(log_with="all") == ["--log_with all without --logging_dir: curves go to wandb alone"]
    assert LoggingOptions(log_with="all").trackers == ("wandb",)
    assert LoggingOptions(log_with="all", logging_dir="logs").trackers == ("tensorboard", "wandb")
    assert said(log_config=True) == ["--log_config without --logging_dir: no curves are written"]
    assert said(wandb_run_name="x") == ["--wandb_run_name without --log_with wandb: does nothing"]


def test_tables_of_a_tracker_configuration(tmp_path):
    file = tmp_path / "t.toml"
    file.write_text('[wandb]\nentity = "us"\n[tensorboard]\nflush_secs = 3\n')
    options = LoggingOptions(logging_dir="logs", log_tracker_config=str(file))
    assert options.tracker_arguments() == {"wandb": {"entity": "us"}, "tensorboard": {"flush_secs": 3}}
    file.write_text('[wandbb]\nentity = "us"\n')
    assert said(logging_dir="logs", log_tracker_config=str(file)) == [
        f"--log_tracker_config {file}: wandbb is no tracker's table"
    ]
