"""Folders of images, and the scripts as they are run in this process."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.script_runs import run_script  # noqa: F401 - the fixture `run`


def save_colours(path, size, colour):
    """An image of one colour (R, G, B)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(path)
    return path
