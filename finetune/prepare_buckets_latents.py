"""Encodes the images of a metadata file to latents, for training without the images."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this project, from wherever it is run

from library.cli.jobs.job import main  # noqa: E402
from library.metadata.jobs import PREPARE as JOB  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(JOB))
