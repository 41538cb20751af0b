"""The examples' programs are run as files: their folders are on `sys.path`, as they are then."""

import sys
from pathlib import Path

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
sys.path += [str(QUICKSTART), str(QUICKSTART / "evaluation"), str(QUICKSTART.parent / "concept_loras")]
