"""Text in pixels: found where a machine draws it, and not seen where there is none."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medgen.io.deidentify.burned_in import looks_like_text
from medgen.phantoms import brain

TEXTS = ("DOE^JANE 1961-04-12", "Smith, John", "ID 4711-0815", "mueller anna")


@cache
def slices() -> list[NDArray[Any]]:
    """Axial, coronal and sagittal slices of heads with and without a skull, 0 to 1."""
    found = []
    for seed in range(3):
        volume = brain((96, 112, 80), spacing_mm=1.5, seed=seed, skull=bool(seed % 2)).image
        for axis in range(3):
            for part in (0.35, 0.5, 0.65):
                index = int(part * volume.voxels.shape[axis + 1])
                plane = np.take(volume.voxels[0], index, axis)
                found.append(plane.T / volume.voxels.max())
    return found


def resized(plane: NDArray[Any], size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Larger, with noise, 8 bits; the head's brightest is 200."""
    image = Image.fromarray(plane.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    noise = np.random.default_rng(seed).normal(0, 4, (size, size))
    return np.clip(np.asarray(image) * 200 + noise, 0, 255).astype(np.uint8)


def with_text(
    picture: NDArray[Any], text: str, size: int, *, fill: int = 255, corner: bool = True
) -> NDArray[Any]:
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    side = picture.shape[0]
    place = (4, 4) if corner else (side - 4 - draw.textlength(text, font=font), side - size - 8)
    draw.text(place, text, fill=fill, font=font)
    return np.asarray(image)


@pytest.mark.parametrize("size", [10, 12, 16, 20, 28])
@pytest.mark.parametrize("kind", ["bright", "as bright as the head", "dark on bright", "12 bits"])
def test_text_in_a_corner_is_found(size: int, kind: str) -> None:
    hits = []
    for number, plane in enumerate(slices()[::3]):
        picture = resized(plane, 512 if number % 2 else 320, number)
        fill = 200 if kind == "as bright as the head" else 255
        text = TEXTS[number % len(TEXTS)]
        picture = with_text(picture, text, size, fill=fill, corner=bool(number % 3))
        if kind == "dark on bright":
            picture = 255 - picture
        hits.append(looks_like_text(picture.astype(np.uint16) * 16 if "12" in kind else picture))
    assert np.mean(hits) >= 0.95


def test_colour_text_is_found() -> None:
    picture = np.repeat(resized(slices()[0], 320)[..., None], 3, axis=2)
    image = Image.fromarray(picture)
    font = ImageFont.load_default(16)
    ImageDraw.Draw(image).text((4, 4), TEXTS[0], fill=(255, 255, 0), font=font)
    assert looks_like_text(np.asarray(image))


def test_heads_without_text_raise_no_alarm() -> None:
    alarms = [
        looks_like_text(resized(plane, size, number))
        for number, plane in enumerate(slices())
        for size in (256, 512)
    ]
    assert len(alarms) == 54
    assert sum(alarms) == 0


def test_noise_raises_no_alarm() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gauss = rng.normal(1000, 50, (512, 512))
        assert not looks_like_text(gauss.astype(np.uint16))
        assert not looks_like_text(np.abs(gauss - 1000).astype(np.uint16))  # air in an MR
        assert not looks_like_text((rng.random((512, 512)) < 0.01) * 255)  # specks


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((64, 64)), np.full((64, 64), 7), np.eye(64), np.zeros((3, 200)),
        np.random.default_rng(0).random((128, 128)),
        (np.indices((128, 128)).sum(0) % 2).astype(float),
    ],
    ids=["zero", "constant", "diagonal", "thin", "noise", "checkers"],
)  # fmt: skip
def test_odd_pictures_raise_no_alarm(picture: NDArray[Any]) -> None:
    assert not looks_like_text(picture)
