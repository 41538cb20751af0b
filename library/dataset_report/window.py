"""The window of --debug_dataset_window: shows the images one by one, in the order of training."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import cv2
import numpy as np

from library.cli.errors import UserError
from library.data.batches.items import draw_items
from library.data.batches.plan import TrainingData
from library.data.images.decoding import load_image, load_masked_image
from library.data.images.inpaint_masks import MaskShares
from library.data.records import Item, MicroBatch
from library.dataset_report.sampled_items import DrawSettings

logger = logging.getLogger(__name__)

FLAG = "--debug_dataset_window"
_ESCAPE = 27
_TITLE = "any key: next image, S: next batch, E: next epoch, Esc: quit"


def open_window() -> None:
    """Opens the window. Raises `UserError` without a display, or if OpenCV is built without windows."""
    hint = "use --debug_dataset instead: it writes an HTML page"
    # without a display, OpenCV would abort the program
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(f"{FLAG} needs a display, but none was found", hint=hint)
    try:
        cv2.namedWindow(_TITLE)
    except cv2.error:
        raise UserError(f"{FLAG}: this build of OpenCV has no window support", hint=hint) from None


def step_through(
    data: TrainingData, draw: DrawSettings, num_epochs: int, show: Callable[[Item, MicroBatch], int]
) -> None:
    """Calls `show` with the items in the order of training, until Esc is pressed.

    `show` returns the code of the key that was pressed: S skips to the next batch, E to the next epoch, Esc quits, any
    other key goes to the next image.
    """
    for epoch in range(num_epochs):
        for micro_batch in data.batches_of_epoch(draw.seed, epoch):
            key = _step_through_batch(data, draw, micro_batch, show)
            if key == _ESCAPE:
                return
            if key == ord("e"):
                break


def _step_through_batch(
    data: TrainingData, draw: DrawSettings, micro_batch: MicroBatch, show: Callable[[Item, MicroBatch], int]
) -> int:
    """The last key that was pressed, in lower case."""
    key = 0
    for item in draw_items(data.datasets[micro_batch.dataset_index], micro_batch, draw.seed, draw.clock):
        key = ord(chr(show(item, micro_batch) & 0xFF).lower())
        if key in (_ESCAPE, ord("s"), ord("e")):
            break
    return key


def show_in_window(item: Item, micro_batch: MicroBatch, masks: MaskShares | None = None) -> int:
    """Shows one image, logs its caption, and waits for a key. An unreadable image is only a warning."""
    logger.info(
        "epoch %d, batch %d: %s: %r", micro_batch.epoch + 1, micro_batch.index + 1, item.latent_key.path, item.caption
    )
    try:
        pixels = load_image(item.latent_key, item.colour).pixels
        if masks is not None:  # beside the image, what is left of it
            pixels = np.concatenate([pixels, load_masked_image(item, masks).pixels], axis=2)
    except UserError as error:
        logger.warning("%s", error.message)
        return 0
    rgb = np.rint((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    cv2.imshow(_TITLE, np.ascontiguousarray(rgb[:, :, ::-1]))
    key = cv2.waitKey(0)
    return _ESCAPE if key < 0 else key  # below 0: the window was closed
