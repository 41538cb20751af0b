"""The curves of a whole run: the names that dashboards know, and what they hold."""

from __future__ import annotations

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.end_to_end.runs import arguments, copy_images, logged, run_command, train

NAMES = {
    "loss/current", "loss/average", "loss/epoch_average", "loss/validation", "loss/validation/step_average",
    "loss/validation/epoch_average", "lr/unet", "lr/textencoder", "norm/grad_norm", "norm/avg_grad_norm",
    "norm/avg_key_norm", "perf/seconds_per_step", "perf/images_per_second", "perf/data_wait_share",
    "perf/peak_memory_gib",
}  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    output = tmp_path_factory.mktemp("curves")
    prompts = output / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 1\n")
    options = {
        "max_train_steps": 7,
        "gradient_accumulation_steps": 2,
        "validation_split": 0.3,
        "validate_every_n_steps": 3,
    }
    train(
        copy_images(output / "data"),
        output,
        **options,
        validate_every_n_epochs=1,
        sample_prompts=prompts,
        sample_at_first=True,
    )
    return output


def test_every_curve_has_its_name(output):
    (folder,) = (output / "logs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= NAMES and {name.split("_t")[0] for name in scalars - NAMES} == {"loss/validation"}
    assert events.Tags()["images"] == ["sample/00"]


def test_the_average_of_an_epoch_is_the_mean_of_its_steps(output):
    losses, averages = dict(logged(output)), logged(output, "loss/epoch_average")
    ends = [step for step, _ in averages]
    assert len(ends) > 1
    for start, (end, value) in zip([0, *ends], averages, strict=False):
        assert value == pytest.approx(np.mean([losses[step] for step in range(start + 1, end + 1)]), rel=1e-5)


def test_validation_has_the_name_of_its_occasion(output):
    by_step, by_epoch = (dict(logged(output, f"loss/validation/{name}_average")) for name in ("step", "epoch"))
    ends = [step for step, _ in logged(output, "loss/epoch_average")]
    assert {0, 3, 6} - set(ends) <= set(by_step) and set(by_epoch) <= set(ends) | {7}
    assert {**by_step, **by_epoch} == dict(logged(output, "loss/validation"))


def test_clipped_gradients_are_smaller_than_they_were(output):
    whole, mean = (dict(logged(output, f"norm/{name}")) for name in ("grad_norm", "avg_grad_norm"))
    assert whole.keys() == mean.keys() and all(0 < mean[step] <= whole[step] for step in whole)


def test_lines_go_to_a_file_and_those_below_the_level_nowhere(data_dir, tmp_path):
    options = {"max_train_steps": 1, "logging_dir": None, "sample_at_first": True, "learning_rate": None}
    log = tmp_path / "logs" / "console.log"
    argv = arguments(data_dir, tmp_path, **options, console_log_file=log, console_log_level="WARNING")
    for _ in range(2):  # appended
        done = run_command([*argv, "--overwrite"])
        assert done.returncode == 0 and "warning:" not in done.stderr and "device" not in done.stderr
    lines = log.read_text().splitlines()
    assert len(lines) == 4 and all(line.startswith("warning: ") for line in lines)
