"""Crops and scaling of clips, seen on pictures that tell rows and columns."""

import numpy as np
import pytest
import torch

from ssdet.data.loading.clips import ClipRecipe, centre_crop, random_crop, resize


def ramps(height: int, width: int) -> torch.Tensor:
    """Two frames; red tells the row, green the column."""
    clip = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    clip[..., 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    clip[..., 1] = torch.arange(width, dtype=torch.uint8)
    return clip


def test_crops_are_of_the_declared_scale_and_stay_inside() -> None:
    clip, recipe = ramps(150, 200), ClipRecipe(size=40, short_side=(50, 80))
    draws = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    sides, lefts, tops = [], [], []
    for scale, top, left in draws.tolist():
        out = random_crop(clip, recipe, scale, top, left)
        assert out.shape == (2, 40, 40, 3) and out.dtype == torch.uint8 and out.is_contiguous()
        rows, columns = out[0, :, 20, 0].double(), out[0, 20, :, 1].double()
        pitch = float(columns[35] - columns[4]) / 31
        assert float(rows[35] - rows[4]) / 31 == pytest.approx(pitch, abs=0.07)
        sides.append(150 / pitch)
        lefts.append(float(columns[20]) - 20.5 * pitch)
        tops.append(float(rows[20]) - 20.5 * pitch)
        assert lefts[-1] > -1.5 and lefts[-1] + 40 * pitch < 201.5
        assert tops[-1] > -1.5 and tops[-1] + 40 * pitch < 151.5
    assert 48.5 < min(sides) < 52 and 77 < max(sides) < 82.5
    assert np.mean(sides) == pytest.approx(65, abs=1.5)
    assert np.std(sides) == pytest.approx(30 / 12**0.5, abs=1)
    assert min(lefts) < 5 and max(lefts) > 95 and min(tops) < 3 and max(tops) > 60
    # The middle of a crop lies in the middle of the picture on average.
    assert np.mean([left + 40 * 150 / side / 2 for left, side in zip(lefts, sides, strict=True)]) \
        == pytest.approx(100, abs=4)  # fmt: skip


def test_published_crops_are_shares_of_the_short_side() -> None:
    """Sides of int(150 · share), as likely each, wherever they fit."""
    clip = ramps(150, 200)
    recipe = ClipRecipe(size=40, short_side=(50, 80), scales=(224 / 256, 224 / 320))
    draws = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    sides, tops = [], {131: set(), 105: set()}
    for scale, top, left in draws.tolist():
        out = random_crop(clip, recipe, scale, top, left)
        pitch = float(out[0, 35, 20, 0].double() - out[0, 4, 20, 0].double()) / 31
        side = min((131, 105), key=lambda known: abs(known - 40 * pitch))
        assert 40 * pitch == pytest.approx(side, abs=2.1)
        sides.append(side)
        tops[side].add(int(out[0, 0, 0, 0]))
    assert 120 < sides.count(131) < 180
    assert max(tops[131]) <= 21 and max(tops[105]) > 35


def test_scaling_averages_as_it_shrinks_and_leaves_the_same_size_alone() -> None:
    clip = torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8)
    assert resize(clip, (16, 24)) is clip
    wide = torch.nn.functional.interpolate(
        clip.permute(0, 3, 1, 2).double(), (4, 6), mode="bilinear", antialias=True
    ).permute(0, 2, 3, 1)
    small = resize(clip, (4, 6))
    assert small.dtype == torch.uint8 and small.is_contiguous()
    assert (small.double() - wide).abs().max() <= 1
    checks = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 255
    assert (resize(checks, (8, 8))[0, 2:6, 2:6].double() - 127.5).abs().max() < 8


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12), (12, 12), (13, 20)])
def test_the_centre_crop_is_in_the_centre(height, width) -> None:
    out = centre_crop(ramps(height, width), min(height, width))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    assert out[0, :, 0, 0].tolist() == list(range(top, top + side))
    assert out[0, 0, :, 1].tolist() == list(range(left, left + side))
    assert centre_crop(ramps(height, width), 6).shape == (2, 6, 6, 3)
