"""Pictures do not know how large a pixel is, and their colours mean something."""

from __future__ import annotations

import numpy as np
import pytest

from medgen.errors import InputError
from medgen.preparation import Preparation
from medgen.volume import Geometry, Volume

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def picture(*size: int, high: float = 255, channels: int = 3) -> Volume:
    rng = np.random.default_rng(0)
    voxels = np.round(rng.uniform(0, high, (channels, *size))).astype(np.float32)
    return Volume(voxels, Geometry(size, AFFINE))


@pytest.mark.parametrize(("size", "longest"), [((200, 150), 100), ((64, 128), 128), ((90, 60), 45)])
def test_the_longer_side_has_the_asked_length(size: tuple[int, int], longest: int) -> None:
    prepared = Preparation(longest_side=longest, margin_mm=0).apply(picture(*size))
    found = prepared.image.shape[1:]
    assert abs(max(found) - longest) <= 1
    assert abs(found[0] / found[1] - size[0] / size[1]) < 0.05
    again = prepared.to_source(prepared.image)
    assert again.shape == (3, *size)


def test_volumes_follow_their_spacing() -> None:
    volume = Volume(
        np.random.default_rng(0).random((1, 20, 24, 16)), Geometry((20, 24, 16), AFFINE)
    )
    plain = Preparation(spacing_mm=2.0, brain="none").apply(volume)
    sided = Preparation(spacing_mm=2.0, brain="none", longest_side=50).apply(volume)
    assert plain.image.shape == sided.image.shape


def test_eight_bits_become_0_to_1() -> None:
    volume = picture(32, 24)
    preparation = Preparation(spacing_mm=None, margin_mm=0, normalisation="eight_bits")
    prepared = preparation.apply(volume)
    np.testing.assert_allclose(
        np.asarray(prepared.image), volume.voxels[:, ::-1, ::-1] / 255, atol=1e-6
    )
    assert prepared.ranges == ((0.0, 255.0),) * 3
    with pytest.raises(InputError, match=r"8 bits hold 0\.\.255"):
        preparation.apply(picture(32, 24, high=4095))
