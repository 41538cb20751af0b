"""merge_lora.py by the name that commands for Stable Diffusion XL have."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this project, from wherever it is run

from library.cli.jobs.job import main  # noqa: E402
from networks.weight_tools.jobs import MERGE as JOB  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(JOB))
