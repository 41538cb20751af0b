"""If these fail, the model waits for images to be decoded, or what it has computed is lost."""

import threading

import pytest

from library.captioning.pipeline import Stages, process_images
from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome

PATHS = [f"{number}.png" for number in range(10)]


def process(stages, *, batch_size=2, num_threads=2):
    outcome = Outcome()
    try:
        process_images(PATHS, stages, outcome, batch_size=batch_size, num_threads=num_threads, title="test")
    except UserError as error:
        return outcome, error
    return outcome, None


def test_the_next_images_are_decoded_while_the_model_computes():
    loaded = {path: threading.Event() for path in PATHS}

    def infer(names, images):
        following = PATHS[PATHS.index(names[-1]) + 1 :][:2]
        assert all(loaded[name].wait(timeout=30) for name in following)
        return images

    outcome, _ = process(Stages(lambda path: loaded[path].set(), infer, lambda path, result: None))
    assert outcome.done == len(PATHS)


def test_decoding_runs_ahead_no_further_than_memory_allows():
    loaded = []

    def infer(names, images):
        assert len(loaded) <= PATHS.index(names[-1]) + 1 + 2 * 2 + 2  # two batches and what two threads have
        return images

    process(Stages(loaded.append, infer, lambda path, result: None))
    assert sorted(loaded) == PATHS


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_each_result_goes_to_its_image_and_failures_leave_batches_full(batch_size):
    stored, sizes = {}, []

    def load(path):
        if path in ("0.png", "4.png"):
            raise UserError(f"image {path} cannot be read")
        return path * 2

    def infer(names, images):
        sizes.append(len(images))
        return images

    def store(path, result):
        if path == "9.png":
            raise OSError(28, "No space left on device")
        stored[path] = result

    outcome, _ = process(Stages(load, infer, store), batch_size=batch_size)
    assert stored == {path: path * 2 for path in PATHS if path[0] not in "049"} and outcome.done == 7
    assert outcome.failed == {
        "0.png": "image 0.png cannot be read",
        "4.png": "image 4.png cannot be read",
        "9.png": "what it gave cannot be written: No space left on device",
    }
    assert sizes == {1: [1] * 8, 3: [3, 3, 2], 10: [8]}[batch_size]


def test_what_was_computed_before_an_error_is_stored():
    stored = []

    def infer(names, images):
        if "4.png" in names:
            raise UserError("out of memory")
        return images

    outcome, error = process(Stages(lambda path: path, infer, lambda path, result: stored.append(path)))
    assert str(error) == "out of memory" and stored == PATHS[:4] and outcome.done == 4
