"""What a concept LoRA learns: the entries of a prompts file."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from library.data.records import Size

ERASE, ENHANCE = "erase", "enhance"
DYNAMIC_STEP = 64  # pixels that sides of a dynamic resolution are multiples of


@dataclass(frozen=True)
class ConceptEntry:
    """The prediction for `target`, with the network at `multiplier`, is drawn to one of the model without the network.

    That is neutral - guidance_scale (positive - unconditional) to erase, and with a plus to enhance.
    "Erasing Concepts from Diffusion Models" (Gandikota et al., 2303.07345).
    """

    target: str
    positive: str
    unconditional: str
    neutral: str
    action: str = ERASE
    guidance_scale: float = 1.0
    resolution: int = 512
    dynamic_resolution: bool = False
    batch_size: int = 1
    multiplier: float = 1.0
    weight: float = 1.0

    @property
    def direction(self) -> float:
        """The factor of positive - unconditional."""
        return self.guidance_scale if self.action == ENHANCE else -self.guidance_scale

    @property
    def prompts(self) -> tuple[str, ...]:
        """All of its prompts, without duplicates."""
        return tuple(dict.fromkeys((self.target, self.positive, self.neutral, self.unconditional)))

    @property
    def description(self) -> str:
        """What it learns, in a few words."""
        signed = "" if self.multiplier == 1 else f" at {self.multiplier:+g}"
        if self.direction == 0:
            is_kept = self.neutral == self.target
            return f"keep {self.target}{signed}" if is_kept else f"draw {self.target} as {self.neutral!r}{signed}"
        subject = self.target if self.positive == self.target else f"{self.positive!r} in {self.target}"
        return f"{self.action} {subject}{signed}"

    def draw_size(self, rng: random.Random) -> Size:
        """The size of a step's images: with `dynamic_resolution` each side is drawn."""
        if not self.dynamic_resolution:
            return self.resolution, self.resolution
        sides = dynamic_sides(self.resolution)
        return rng.choice(sides), rng.choice(sides)


def dynamic_sides(resolution: int) -> list[int]:
    """The multiples of 64 from half the resolution to the whole."""
    first = -(-resolution // (2 * DYNAMIC_STEP)) * DYNAMIC_STEP
    return list(range(first, resolution + 1, DYNAMIC_STEP))


def entry_of(values: dict[str, Any]) -> ConceptEntry:
    """The entry of checked values; what is not given follows from the others."""
    unconditional = values.get("unconditional", "")
    defaults = {
        "positive": values["target"],
        "unconditional": unconditional,
        "neutral": values.get("neutral", unconditional),
    }
    return ConceptEntry(**{**defaults, **values})


def slider_entries(values: dict[str, Any]) -> list[ConceptEntry]:
    """Both directions of a slider: at +multiplier enhance, at -multiplier erase; both for each of `neutrals`.

    "Concept Sliders" (Gandikota et al., 2311.12092).
    """
    shared = dict(values)
    subject, multiplier = shared.pop("target_class"), shared.pop("multiplier", 1.0)
    contrast = {"positive": shared.pop("positive"), "unconditional": shared.pop("negative")}
    neutrals = [*shared.pop("neutrals", ()), *([shared.pop("neutral")] if "neutral" in shared else ())]
    subjects = [" ".join(part for part in (each, subject) if part) for each in neutrals] or [subject]
    directions = ((ENHANCE, multiplier), (ERASE, -multiplier))
    return [
        ConceptEntry(target=each, neutral=each, **contrast, action=action, multiplier=signed, **shared)
        for each in subjects
        for action, signed in directions
    ]
