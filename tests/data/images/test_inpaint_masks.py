"""If these fail, an inpainting model is trained on other masks than it is asked for, or shown what it has to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from library.cli.errors import UserError
from library.data.buckets import fit_to_bucket
from library.data.config.options import MASK_SHAPES, InpaintingOptions
from library.data.images.decoding import load_image
from library.data.images.inpaint_masks import MaskShares, masked_image
from library.data.records import LatentKey

USUAL = MaskShares(InpaintingOptions().mask_shares)


def test_the_full_image_is_drawn_a_quarter_of_the_time():
    """Of 2,000 masks 500, with a standard deviation of 19; the others leave something."""
    areas = np.array([USUAL.draw((32, 32), seed).mean() for seed in range(2000)])
    assert 420 < (areas == 1).sum() < 580
    assert (areas > 0).all()
    assert 0.15 < areas[areas < 1].mean() < 0.5


@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_each_shape_is_a_function_of_the_seed(shape):
    shares = MaskShares({shape: 1.0})
    masks = [shares.draw((96, 64), seed) for seed in range(40)]
    assert all(mask.shape == (64, 96) and mask.dtype == bool and mask.any() for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == 40
    assert all(np.array_equal(mask, shares.draw((96, 64), seed)) for seed, mask in enumerate(masks))
    if shape == "cloud":  # as much of the image as it is asked for
        assert all(0.09 < mask.mean() < 0.51 for mask in masks)
    assert np.mean([mask.mean() for mask in masks]) > 0.04


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({}, {"full": 0.25, **dict.fromkeys(MASK_SHAPES, 0.15)}),
        ({"inpaint_full_rate": 0.0}, {"full": 0.0, **dict.fromkeys(MASK_SHAPES, 0.2)}),
        ({"inpaint_mask_shares": ("box=3", "stroke=1")}, {"full": 0.25, "box": 0.5625, "stroke": 0.1875}),
        ({"inpaint_mask_shares": ("box=1 cloud=0",), "inpaint_full_rate": 0.5}, {"full": 0.5, "box": 0.5, "cloud": 0}),
    ],
)
def test_shares_are_those_of_the_options(given, shares):
    assert InpaintingOptions(**given).mask_shares == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("strok=1", "strok is not a kind of mask", "did you mean stroke?"),
        ("box", "'' is not a share", "write box=1"),
        ("box=-1", "'-1' is not a share", "write box=1"),
        ("box=nan", "'nan' is not a share", "write box=1"),
        ("box=0", "all shares are 0", "--inpaint_full_rate 1"),
    ],
)
def test_shares_that_cannot_be_read_are_said(text, message, hint):
    (error,) = InpaintingOptions(inpaint_mask_shares=(text,)).check()
    assert isinstance(error, UserError) and message in error.message and hint in error.hint


def test_a_masked_image_is_grey_where_it_is_to_be_drawn_and_its_mask_is_that_of_the_pipelines():
    """Grey is 0 in [-1, 1]; Diffusers' pipelines scale masks by `interpolate`, which is by nearest."""
    rng = np.random.default_rng(0)
    pixels, mask = rng.uniform(-1, 1, (3, 48, 64)).astype(np.float32), rng.random((48, 64)) < 0.5
    found = masked_image(pixels, mask)
    assert (found.pixels[:, mask] == 0).all() and (found.pixels[:, ~mask] == pixels[:, ~mask]).all()
    expected = functional.interpolate(torch.from_numpy(mask[None, None].astype(np.float32)), size=(6, 8))
    np.testing.assert_array_equal(found.mask, expected[0, 0])


def key_of(path: Path, **settings) -> LatentKey:
    """48 x 32, of which 32 x 32 in the middle are trained."""
    placement = fit_to_bucket((48, 32), (32, 32))
    return LatentKey(str(path), path.name, (48, 32), 0, placement, **{"flipped": False, **settings}).masked


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("source", ["mask image", "alpha"])
def test_an_images_own_mask_says_what_is_to_be_drawn(tmp_path, source, flipped):
    """0.5 and lighter of a mask image, more transparent than not of an alpha channel; cropped and flipped as it is."""
    rng = np.random.default_rng(1)
    colours = rng.integers(1, 255, (32, 48, 3), dtype=np.uint8)
    levels = rng.choice(np.array([0, 127, 128, 255], dtype=np.uint8), (32, 48))
    path = tmp_path / "a.png"
    if source == "alpha":
        Image.fromarray(np.dstack([colours, 255 - levels]), "RGBA").save(path)
        key = key_of(path, alpha_is_mask=True, flipped=flipped)
    else:
        Image.fromarray(colours).save(path)
        Image.fromarray(levels).save(tmp_path / "mask.png")
        key = key_of(path, mask_path=str(tmp_path / "mask.png"), flipped=flipped)
    assert key.masked_by == "given" and key.cache_ending == "_sd_inpaint.npz"
    mask, kept = (levels >= 128)[:, 8:40], colours[:, 8:40]
    if flipped:
        mask, kept = mask[:, ::-1], kept[:, ::-1]
    image = load_image(key)
    pixels = np.where(mask, 0, kept.transpose(2, 0, 1) / 127.5 - 1)
    np.testing.assert_allclose(image.pixels, pixels, atol=1e-6)
    np.testing.assert_array_equal(image.mask, mask[::8, ::8])


def test_an_image_without_a_mask_has_one_drawn(tmp_path):
    assert key_of(tmp_path / "a.png").masked_by == "drawn"
