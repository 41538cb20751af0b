"""Captions images with BLIP: python finetune/make_captions.py FOLDER"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.captioning.caption_images import BLIP_JOB as JOB
from library.cli.jobs.job import main

if __name__ == "__main__":
    sys.exit(main(JOB))
