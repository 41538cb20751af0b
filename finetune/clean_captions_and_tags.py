"""Cleans the captions and tags of a metadata file, by the rules in the table of this file or those of --rules."""

import sys
from pathlib import Path

# The rules: edit them, or give others with --rules FILE.toml (docs/finetune_scripts.md says what each does).
RULES = {
    "caption_replacements": [
        ["young ", ""],
        ["anime anime", "anime"],
        ["cartoon anime ", ""],
        ["anime cartoon ", ""],
        ["a cartoon image", "an image"],
        ["cartoon figure", "figure"],
        ["lady", "girl"],
        ["female", "girl"],
        ["woman", "girl"],
        ["women", "girls"],
        ["people", "girls"],
        ["person", "girl"],
        ["anime girl", "girl"],
        ["cartoon girl", "girl"],
        ["anime character", "girl"],
        ["cartoon character", "girl"],
        ["girl girl", "girl"],
    ],
    "replace_underscores": True,
    "keep_underscores": [
        "^_^", "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@",
        "o_o", "u_u", "x_x", "|_|", "||_||",
    ],
    "cut_from": ["rating.*"],
    "several_people": [r"(\d+\+?|multiple )?(girls|boys|others)"],
    "describe_one": [
        "(long|short|medium) hair",
        r"(?!(long|short|medium) )[\w-]+ hair",
        "(bob|hime) cut",
        r"[\w-]+ eyes",
        r"[\w-]+ sleeves|sleeveless",
        r"ponytail|twintails|two side up|sidelocks|ahoge|braid|(single|side|french) braid|[\w-]+ bun|single side bun",
    ],
    "general": [r"[\w-]+", "hair ornament"],
}  # fmt: skip

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this project, from wherever it is run

from library.cli.jobs.job import main  # noqa: E402
from library.metadata.jobs import cleaning_job  # noqa: E402

JOB = cleaning_job(RULES, __file__)

if __name__ == "__main__":
    sys.exit(main(JOB))
