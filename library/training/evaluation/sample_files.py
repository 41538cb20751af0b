"""Files of sample images: their names, what they say in their PNG metadata, and the images of a run so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.training.evaluation.prompts import SamplePrompt

PARAMETERS_KEY = "parameters"  # as image programs write and read it
SAMPLE_KEY = "sample"  # the same as JSON, with where the run was


@dataclass(frozen=True)
class SampleFacts:
    """How a sample image was made. `seed`: the one used; `round`: the step or epoch in its file name."""

    prompt: SamplePrompt
    sampler: str
    seed: int
    run: str
    round: str
    step: int

    @property
    def title(self) -> str:
        return round_title(self.round)

    def png_info(self) -> PngInfo:
        """The PNG metadata."""
        prompt = self.prompt
        negative = f"Negative prompt: {prompt.negative_prompt}\n" if prompt.negative_prompt else ""
        settings = (
            f"Steps: {prompt.sample_steps}, Sampler: {self.sampler}, CFG scale: {prompt.scale:g}, Seed: {self.seed}, "
            f"Size: {prompt.width}x{prompt.height}, Model: {self.run}, Training step: {self.step}"
        )
        info = PngInfo()
        info.add_text(PARAMETERS_KEY, f"{prompt.prompt}\n{negative}{settings}")
        info.add_text(SAMPLE_KEY, json.dumps(asdict(self), ensure_ascii=False))
        return info


def round_title(name: str) -> str:
    """ "e000004" -> "epoch 4", "000200" -> "step 200", "000000" -> "before training"."""
    if name.startswith("e"):
        return f"epoch {int(name[1:])}"
    return f"step {int(name)}" if int(name) else "before training"


def read_facts(path: Path) -> SampleFacts | None:
    """What a PNG says of itself; None where it is no sample image, or not readable."""
    try:
        with Image.open(path) as image:
            values = json.loads(image.info[SAMPLE_KEY])
        return SampleFacts(**{**values, "prompt": SamplePrompt(**values["prompt"])})
    except (OSError, KeyError, TypeError, ValueError):
        return None


def sample_path(folder: Path, facts: SampleFacts, stamp: str) -> Path:
    """`[<run>_]<step or e epoch>_<prompt index>_<time>[_<seed>].png`, with a seed that the prompt gives."""
    name = f"{facts.run}_" if facts.run else ""
    seed = "" if facts.prompt.seed is None else f"_{facts.prompt.seed}"
    return folder / f"{name}{facts.round}_{facts.prompt.index:02d}_{stamp}{seed}.png"


RowKey = tuple[SamplePrompt, int]  # a prompt, and how many equal ones stand before it in the file


@dataclass
class SampleHistory:
    """The sample images of a run: rows are prompts, columns rounds by their step."""

    rows: dict[RowKey, dict[int, Path]] = field(default_factory=dict)
    rounds: dict[int, str] = field(default_factory=dict)  # step -> name

    def add(self, images: Iterable[tuple[SampleFacts, Path]]) -> None:
        """Adds the images of one round, in the order of the file."""
        seen: Counter[SamplePrompt] = Counter()
        for facts, path in images:
            key = (replace(facts.prompt, index=0), seen[facts.prompt])
            seen[facts.prompt] += 1
            self.rows.setdefault(key, {})[facts.step] = path
            self.rounds[facts.step] = facts.round

    def steps(self, limit: int) -> list[int]:
        """The steps of at most `limit` rounds, spread evenly from the first to the last."""
        steps = sorted(self.rounds)
        if len(steps) <= limit:
            return steps
        return [steps[round(number * (len(steps) - 1) / (limit - 1))] for number in range(limit)]


def earlier_images(folder: Path, run: str, before_step: int) -> SampleHistory:
    """The images in `folder` of a run that is resumed at `before_step`; of one drawn twice, the newer file."""
    history = SampleHistory()
    for images in _by_round(folder, run, before_step):
        history.add(images)
    return history


def _by_round(folder: Path, run: str, before_step: int) -> Iterator[list[tuple[SampleFacts, Path]]]:
    rounds: dict[int, dict[int, tuple[SampleFacts, Path]]] = {}
    for path in sorted(folder.glob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        facts = read_facts(path)
        if facts is not None and facts.run == run and facts.step <= before_step:
            rounds.setdefault(facts.step, {})[facts.prompt.index] = (facts, path)
    for _, images in sorted(rounds.items()):
        yield [images[index] for index in sorted(images)]
