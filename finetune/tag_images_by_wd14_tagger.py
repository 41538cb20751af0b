"""Tags images with a WD14 tagger: python finetune/tag_images_by_wd14_tagger.py FOLDER"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.captioning.tagging.tag_images import JOB
from library.cli.jobs.job import main

if __name__ == "__main__":
    sys.exit(main(JOB))
