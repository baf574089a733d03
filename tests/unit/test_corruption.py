"""Simulated lesions lie where they were put, look as asked, and repeat with their seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medgen.corruption import LesionShapes, appearance, blob, random_rotation, smooth_noise
from medgen.errors import InputError

SHAPE = (14, 40, 44)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def shapes(tmp_path: Path) -> LesionShapes:
    masks = np.zeros((2, 12, 14, 10), dtype=np.uint8)
    masks[0, 3:9, 4:10, 2:8] = 1
    masks[1, 2:4, 2:12, 4:6] = 1
    path = tmp_path / "shapes.npz"
    packed = np.stack([np.packbits(mask) for mask in masks])
    np.savez(path, packed=packed, shape=masks.shape[1:], affine=np.diag([2.0, 2, 2, 1]))
    return LesionShapes(path)


@given(st.integers(0, 10_000), st.floats(1.0, 9.0))
def test_a_blob_is_centred_where_it_was_put_and_about_as_large(seed: int, radius: float) -> None:
    centre = (20, 22, 24)
    alpha, box = blob(centre, radius, (40, 44, 48), seeded(seed))
    whole = torch.zeros(40, 44, 48)
    whole[box] = alpha
    assert 0 <= float(alpha.min()) <= float(alpha.max()) <= 1
    where = (whole > 0.5).nonzero().float()
    if radius > 3:
        assert torch.linalg.norm(where.mean(0) - torch.tensor(centre)) < radius
        mean_radius = (len(where) * 3 / (4 * np.pi)) ** (1 / 3)
        assert 0.6 * radius < mean_radius < 1.6 * radius


@given(st.integers(0, 10_000))
def test_a_blob_at_the_border_is_cut_off_not_refused(seed: int) -> None:
    alpha, box = blob((0, 39, 0), 6.0, SHAPE, seeded(seed))
    assert torch.zeros(SHAPE)[box].shape == alpha.shape


@given(st.integers(0, 10_000))
def test_real_shapes_keep_their_volume_when_placed(shapes: LesionShapes, seed: int) -> None:
    """Turning and mirroring must not tear a mask: its volume follows from the scale alone."""
    alpha, box = shapes.place((20, 20, 20), (40, 40, 40), 1.0, seeded(seed), largest=99)
    whole = torch.zeros(40, 40, 40)
    whole[box] = alpha
    sources = [float(mask.sum()) for mask in shapes.masks]
    volume = float(whole.sum())
    # The scale is drawn between 0.6 and 1.2 of 2 mm on a 1 mm grid.
    assert min(sources) * 1.2**3 * 0.8 < volume < max(sources) * 2.4**3 * 1.2


def test_large_shapes_are_shrunk_to_the_limit(shapes: LesionShapes) -> None:
    alpha, _ = shapes.place((20, 20, 20), (40, 40, 40), 0.5, seeded(3), largest=8)
    extent = (alpha > 0.5).nonzero()
    assert int((extent.max(0).values - extent.min(0).values).max()) <= 12


@given(st.integers(0, 10_000), st.sampled_from([-0.4, 0.4]))
def test_appearance_changes_only_where_the_lesion_is(seed: int, difference: float) -> None:
    tissue = torch.full((9, 9, 9), 0.6)
    alpha = torch.zeros(9, 9, 9)
    alpha[3:6, 3:6, 3:6] = 1
    damaged, used = appearance(tissue, alpha, difference, seeded(seed))
    assert torch.equal(damaged[alpha == 0], tissue[alpha == 0])
    assert torch.equal(used, alpha)
    assert (damaged[alpha > 0] != tissue[alpha > 0]).any()
    assert torch.isfinite(damaged).all()


@given(st.integers(0, 10_000), st.floats(1.0, 30.0))
def test_smooth_noise_has_unit_variance_and_the_asked_grain(seed: int, grain: float) -> None:
    noise = smooth_noise((32, 32, 32), grain, seeded(seed))
    assert 0.7 < float(noise.std()) < 1.4
    if grain > 6:
        assert float((noise[1:] - noise[:-1]).std()) < 0.6


@given(st.integers(0, 10_000))
def test_rotations_are_rotations(seed: int) -> None:
    turn = random_rotation(seeded(seed))
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-5)
    assert float(torch.linalg.det(turn)) == pytest.approx(1, abs=1e-5)


def test_unreadable_shapes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(InputError, match="no readable lesion shapes"):
        LesionShapes(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(InputError, match="packed"):
        LesionShapes(tmp_path / "other.npz")
