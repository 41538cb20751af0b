"""Aspect-ratio bucketing: the size that each image is trained at. Pure functions of (width, height) in pixels."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

from library.cli.errors import UserError
from library.data.records import Placement, Size, size_text

PIXELS_PER_LATENT = 8  # the VAE's scale: sides of training images are multiples of this
LONGEST_SIDE = 2**15  # of a bucket: no model is trained near it, and tables of buckets stay short
logger = logging.getLogger(__name__)

CropLTRB = tuple[float, float, float, float]


@dataclass(frozen=True)
class BucketSettings:
    """What decides the bucket of every image of a dataset."""

    resolution: Size
    enable_bucket: bool = True
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False

    @property
    def max_area(self) -> int:
        return self.resolution[0] * self.resolution[1]

    @property
    def side_limits(self) -> tuple[int, int]:
        """Shortest and longest side of a bucket, moved outwards to multiples of the step."""
        steps = self.bucket_reso_steps
        return self.min_bucket_reso // steps * steps, math.ceil(self.max_bucket_reso / steps) * steps

    def problems(self, prefix: str) -> Iterator[UserError]:
        """Invalid settings; `prefix`: what stands before their names, such as "datasets[0]." or "--" for flags."""
        limit = f"give {LONGEST_SIDE} or less"
        if max(self.resolution) > LONGEST_SIDE:
            yield UserError(f"{prefix}resolution {size_text(self.resolution)} is too large", hint=limit)
        if not self.enable_bucket:
            if any(side % PIXELS_PER_LATENT for side in self.resolution):
                yield UserError(
                    f"{prefix}resolution {size_text(self.resolution)} is not a multiple of {PIXELS_PER_LATENT}",
                    hint=f"without enable_bucket both sides must be multiples of {PIXELS_PER_LATENT}",
                )
            return
        if self.max_bucket_reso > LONGEST_SIDE:
            yield UserError(f"{prefix}max_bucket_reso {self.max_bucket_reso} is too large", hint=limit)
        steps = self.bucket_reso_steps
        if steps % PIXELS_PER_LATENT:
            yield UserError(
                f"{prefix}bucket_reso_steps {steps} is not a multiple of {PIXELS_PER_LATENT}",
                hint="give 64, 32, 16 or 8",
            )
        if self.min_bucket_reso > self.max_bucket_reso:
            yield UserError(
                f"{prefix}min_bucket_reso {self.min_bucket_reso} is larger than max_bucket_reso {self.max_bucket_reso}",
                hint="swap the two, or lower min_bucket_reso",
            )
            return
        yield from self._limits_against_resolution(prefix)

    def _limits_against_resolution(self, prefix: str) -> Iterator[UserError]:
        shortest, longest = self.side_limits
        resolution, steps = size_text(self.resolution), self.bucket_reso_steps
        if shortest == 0:
            yield UserError(
                f"{prefix}min_bucket_reso {self.min_bucket_reso} is smaller than bucket_reso_steps {steps}",
                hint="raise min_bucket_reso or lower bucket_reso_steps",
            )
        if shortest > min(self.resolution):
            yield UserError(
                f"{prefix}min_bucket_reso {self.min_bucket_reso} is larger than resolution {resolution}",
                hint=f"set min_bucket_reso to {min(self.resolution)} or less, or raise the resolution",
            )
        elif max(self.resolution) > longest:
            yield UserError(
                f"{prefix}max_bucket_reso {self.max_bucket_reso} is smaller than resolution {resolution}",
                hint=f"set max_bucket_reso to {max(self.resolution)} or more, or lower the resolution",
            )
        elif shortest and min(self.resolution) < steps:
            yield UserError(
                f"{prefix}resolution {resolution} is smaller than bucket_reso_steps {steps}",
                hint="raise the resolution or lower bucket_reso_steps",
            )


def usable_steps(steps: int, named: str) -> int:
    """`bucket_reso_steps`, raised to the VAE's 8 where it is smaller; `named`: its flag or key, for the warning."""
    if steps >= PIXELS_PER_LATENT:
        return steps
    logger.warning(
        "%s %d: using %d, the sides of training images must be multiples of it", named, steps, PIXELS_PER_LATENT
    )
    return PIXELS_PER_LATENT


def bucket_resolutions(settings: BucketSettings) -> list[Size]:
    """All buckets of a dataset, sorted by width, then height.

    Empty where buckets come from the images' sizes (`bucket_no_upscale`).
    """
    if not settings.enable_bucket:
        return [settings.resolution]
    if settings.bucket_no_upscale:
        return []
    steps = settings.bucket_reso_steps
    shortest, longest = settings.side_limits
    square = math.isqrt(settings.max_area) // steps * steps
    found = {(square, square)}
    for width in range(shortest, longest + 1, steps):
        height = min(longest, settings.max_area // width // steps * steps)
        if height >= shortest:
            found |= {(width, height), (height, width)}
    return sorted(found)


class BucketChooser:
    """Assigns images to buckets. Holds the table of buckets, so that it is built once per dataset."""

    def __init__(self, settings: BucketSettings):
        self._settings = settings
        self._resolutions = bucket_resolutions(settings)
        self._in_table = frozenset(self._resolutions)
        # sizes of the same aspect ratio: the first in the table counts
        self._by_ratio: dict[float, Size] = {}
        for size in self._resolutions:
            self._by_ratio.setdefault(size[0] / size[1], size)
        self._ratios = sorted(self._by_ratio)
        self._placements: dict[Size, Placement] = {}  # there are few sizes and many images

    def assign(self, image_size: Size) -> Placement:
        """Bucket, resized size and centre crop of an image of this size."""
        found = self._placements.get(image_size)
        if found is None:
            found = self._placements[image_size] = self._new_placement(image_size)
        return found

    def _new_placement(self, image_size: Size) -> Placement:
        if self._settings.enable_bucket and self._settings.bucket_no_upscale:
            bucket, resized = _own_size_bucket(image_size, self._settings)
        else:
            bucket = self._nearest(image_size)
            return fit_to_bucket(image_size, bucket)
        return Placement(bucket, resized, centre_crop(resized, bucket))

    def _nearest(self, image_size: Size) -> Size:
        if image_size in self._in_table:
            return image_size
        ratio = image_size[0] / image_size[1]
        after = bisect.bisect_left(self._ratios, ratio)
        candidates = [self._by_ratio[each] for each in self._ratios[max(0, after - 1) : after + 1]]
        return min(candidates, key=lambda size: (abs(size[0] / size[1] - ratio), size))


def _own_size_bucket(image_size: Size, settings: BucketSettings) -> tuple[Size, Size]:
    """`bucket_no_upscale`: (bucket, resized size) from the image's own size, downscaled to the area, cut to steps."""
    steps, max_area = settings.bucket_reso_steps, settings.max_area
    width, height = image_size
    resized = image_size
    if width * height > max_area:
        downscaled = _downscaled_to_steps(width / height, max_area, steps)
        if downscaled is None:
            return _smallest_bucket(image_size, settings)
        resized = downscaled
    bucket = (_cut(resized[0], steps), _cut(resized[1], steps))
    if 0 in bucket:
        return _smallest_bucket(image_size, settings)
    return bucket, resized


def _downscaled_to_steps(ratio: float, max_area: int, steps: int) -> Size | None:
    """The size of this aspect ratio and area with one side a multiple of `steps`, the side that distorts less.

    None where a side would be shorter than one step.
    """
    exact_width = math.sqrt(max_area * ratio)
    by_width = _cut(_rounded(exact_width), steps)
    by_height = _cut(_rounded(max_area / exact_width), steps)
    height_for_width = _cut(_rounded(by_width / ratio), steps)
    width_for_height = _cut(_rounded(by_height * ratio), steps)
    if height_for_width == 0 or by_height == 0:
        return None
    if abs(by_width / height_for_width - ratio) < abs(width_for_height / by_height - ratio):
        return by_width, _rounded(by_width / ratio)
    return _rounded(by_height * ratio), by_height


def _smallest_bucket(image_size: Size, settings: BucketSettings) -> tuple[Size, Size]:
    """For images thinner than one step: one step by the multiple of it that is nearest to their aspect ratio."""
    steps = settings.bucket_reso_steps
    width, height = image_size
    ratio = max(width, height) / min(width, height)
    longest = settings.max_area // steps // steps
    long_side = min(max(1, _rounded(ratio)), longest) * steps
    bucket = (long_side, steps) if width > height else (steps, long_side)
    return bucket, covering_size(image_size, bucket)


def _rounded(value: float) -> int:
    return int(value + 0.5)


def _cut(side: int, steps: int) -> int:
    return side - side % steps


def covering_size(image_size: Size, bucket: Size) -> Size:
    """The smallest size of the image's aspect ratio that covers the bucket."""
    width, height = image_size
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    return _rounded(width * scale), _rounded(height * scale)


def fit_to_bucket(image_size: Size, bucket: Size) -> Placement:
    """Resize and centre crop of an image for a given bucket, cropping as little as possible."""
    resized = covering_size(image_size, bucket)
    return Placement(bucket, resized, centre_crop(resized, bucket))


def centre_crop(resized: Size, bucket: Size) -> tuple[int, int]:
    """Left and top of the centre crop of bucket size in the resized image."""
    return (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2


def aspect_error(image_size: Size, bucket: Size) -> float:
    """Aspect ratio of the bucket minus that of the image."""
    return bucket[0] / bucket[1] - image_size[0] / image_size[1]


def crop_ltrb(bucket: Size, image_size: Size) -> CropLTRB:
    """`crop_ltrb` of cache files: left, top, right and bottom of the whole image when it is fitted into the bucket."""
    bucket_ratio, ratio = bucket[0] / bucket[1], image_size[0] / image_size[1]
    width = bucket[1] * ratio if bucket_ratio > ratio else float(bucket[0])
    height = float(bucket[1]) if bucket_ratio > ratio else bucket[0] / ratio
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height
