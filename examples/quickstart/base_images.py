"""Draws the images that the base model is trained on, with their captions: shapes and emoji on plain backgrounds.

Each image depends on the seed and its number alone. The emoji are those of the npm package emoji-datasource-google
16.0.0, unpacked. `HELD_OUT` is never drawn, so that the model has subjects left to learn.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from evaluation.drawing import COLOURS, OFFSETS, SHAPES, SIZE, blend, outline, plain, shape_radius
from PIL import Image

HELD_OUT = {"fox_face", "poodle", "robot_face", "unicorn_face", "squid"}
CATEGORIES = {
    *("Animals & Nature", "Food & Drink", "Smileys & Emotion"),
    *("Objects", "Travel & Places", "Activities"),
}
# the forty that the evaluation asks for: their words in captions, and the package's names where these differ
_WORDS = """
    apple, balloon, banana, bear, bomb, cactus, carrot, cherries, cloud, clover, donut, duck, eggplant, elephant,
    fire, frog, gear, gem, ice cream, key, koala, lemon, moon, owl, palm tree, penguin, pig, pineapple, pizza, planet,
    pumpkin, rabbit, shirt, snail, top hat, tree, tulip, turtle, umbrella, whale
"""
_NAMES = {
    **{"clover": "four_leaf_clover", "donut": "doughnut", "ice cream": "icecream", "moon": "crescent_moon"},
    **{"palm tree": "palm_tree", "planet": "ringed_planet", "pumpkin": "jack_o_lantern", "top hat": "tophat"},
    "tree": "deciduous_tree",
}
FORTY = {_NAMES.get(word, word): word for word in _WORDS.strip().replace("\n    ", " ").split(", ")}
# how many of the images are shapes, of the forty emoji, and of the others
SHARES = {"shape": 0.36, "forty": 0.40, "other": 0.24}
PREFIXES = ["", "", "", "", "a photo of ", "a picture of ", "an image of "]
UNKNOWN_WORD_RATE = 0.1  # of captions get a random word, so that one the model does not know changes little


@dataclass(frozen=True)
class Emoji:
    word: str
    animal: bool
    image: Image.Image


def read_emoji(package: Path) -> tuple[list[Emoji], list[Emoji]]:
    """The forty emoji and the others of the package, without `HELD_OUT`."""
    forty, others = [], []
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        name = entry["short_name"]
        if name in HELD_OUT or not entry["has_img_google"] or entry["category"] not in CATEGORIES:
            continue
        image = Image.open(package / "img" / "google" / "64" / entry["image"]).convert("RGBA")
        word = FORTY.get(name) or name.replace("_", " ").replace("-", " ")
        (forty if name in FORTY else others).append(Emoji(word, entry["subcategory"].startswith("animal-"), image))
    return forty, others


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption_of(rng: np.random.Generator, adjectives: list[str], noun: str, rest: str, words: list[str]) -> str:
    unknown = [str(rng.choice(words))] if rng.random() < UNKNOWN_WORD_RATE else []
    return str(rng.choice(PREFIXES)) + article(" ".join([*adjectives, *unknown, noun])) + rest


def random_shape(rng: np.random.Generator, words: list[str]) -> tuple[np.ndarray, str]:
    colour, background = rng.choice(list(COLOURS), 2, replace=False)
    shape = str(rng.choice(SHAPES))
    position = str(rng.choice([name for name in OFFSETS if name])) if rng.random() < 0.6 else ""
    size = "" if position else str(rng.choice(["", "", "small", "big"]))
    dx, dy = OFFSETS[position]
    x, y = 32 + 15 * dx + rng.uniform(-1.5, 1.5), 32 + 15 * dy + rng.uniform(-1.5, 1.5)
    coverage = outline(shape, x, y, shape_radius(size, position) * rng.uniform(0.94, 1.06), rng.uniform(-0.08, 0.08))
    where = {"": "", "left": " on the left", "right": " on the right", "top": " at the top", "bottom": " at the bottom"}
    rest = f"{where[position]} on {article(background)} background"
    adjectives = [word for word in (size, str(colour)) if word]
    return blend(plain(background), plain(colour), coverage), caption_of(rng, adjectives, shape, rest, words)


def recoloured(pixels: np.ndarray, colour: str) -> np.ndarray:
    """The brightness of an emoji's pixels in shades of one colour.  # (N, N, 3)"""
    brightness = pixels @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    return np.array(COLOURS[colour], np.float32) * (0.35 + 0.8 * brightness[..., None])


def random_emoji(rng: np.random.Generator, emoji: Emoji, words: list[str]) -> tuple[np.ndarray, str]:
    background = str(rng.choice(list(COLOURS)))
    small = rng.random() < 0.15
    size = int(rng.integers(32, 38) if small else rng.integers(54, 62))
    image = emoji.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else emoji.image
    if rng.random() < 0.4:
        image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    scaled = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    x, y = (SIZE - size) // 2 + rng.integers(-2, 3, 2).clip(-((SIZE - size) // 2), (SIZE - size) // 2)
    layer = np.zeros((SIZE, SIZE, 4), np.float32)
    layer[y : y + size, x : x + size] = scaled
    adjectives, front = ["small"] if small else [], layer[..., :3]
    if rng.random() < 0.12:
        colour = str(rng.choice([name for name in COLOURS if name != background]))
        adjectives, front = [*adjectives, colour], recoloured(front, colour)
    noun = "animal" if emoji.animal and rng.random() < 0.15 else emoji.word
    caption = caption_of(rng, adjectives, noun, f" on {article(background)} background", words)
    return blend(plain(background), front, layer[..., 3] / 255), caption


def unknown_words(vocabulary: Path) -> list[str]:
    """The tokens of a CLIP vocabulary that are words of consonants, such as "nfl", without the quickstart's "shs"."""
    tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
    words = [match[1] for match in map(re.compile(r"([b-df-hj-np-tv-xz]{3,5})</w>").fullmatch, tokens) if match]
    return [word for word in words if word != "shs"]


def draw_images(folder: Path, package: Path, count: int, seed: int, vocabulary: Path) -> Path:
    """Writes `count` images and metadata.json with their captions, and returns the latter's path."""
    forty, others = read_emoji(package)
    words = unknown_words(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = rng.choice(list(SHARES), p=list(SHARES.values()))
        if kind == "shape":
            pixels, caption = random_shape(rng, words)
        else:
            among = forty if kind == "forty" else others
            pixels, caption = random_emoji(rng, among[rng.integers(len(among))], words)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)
        metadata[f"{number:06d}.png"] = {"caption": caption}
    path = folder / "metadata.json"
    path.write_text(json.dumps(metadata, indent=0), encoding="utf-8")
    return path
