"""Makes a LoRA of each rank of a DyLoRA: python networks/extract_lora_from_dylora.py --model FILE --save_to FILE"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this project, from wherever it is run

from library.cli.jobs.job import main  # noqa: E402
from networks.weight_tools.jobs import DYLORA as JOB  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(JOB))
