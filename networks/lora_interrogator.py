"""Shows what a LoRA's text encoder reacts to: python networks/lora_interrogator.py --sd_model MODEL --model FILE"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this project, from wherever it is run

from library.cli.jobs.job import main  # noqa: E402
from networks.weight_tools.jobs import INTERROGATE as JOB  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(JOB))
