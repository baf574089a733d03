"""Pasted anomalies lie where they say, look as asked, and repeat with their seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medgen.corruption.pasting import (
    CUT_AREA,
    FACTORS,
    Pasted,
    cut_paste,
    foreign_patch,
    noisy_blobs,
    visible_part,
)

SIZES = {2: (40, 56), 3: (16, 24, 20)}
either = pytest.mark.parametrize("dims", [2, 3])
seeds = st.integers(0, 10_000)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(dims: int, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(channels, *SIZES[dims], generator=seeded(seed))


def pasted(kind: str, healthy: Tensor, seed: int) -> Pasted:
    if kind == "fpi":
        return foreign_patch(healthy, 1 - healthy, seeded(seed))
    return {"cutpaste": cut_paste, "blobs": noisy_blobs}[kind](healthy, seeded(seed))


@either
@pytest.mark.parametrize("kind", ["fpi", "cutpaste", "blobs"])
@given(seed=seeds)
def test_nothing_changes_outside_and_seeds_repeat(dims: int, kind: str, seed: int) -> None:
    healthy = image(dims, channels=3)
    before = healthy.clone()
    found, factor = pasted(kind, healthy, seed)
    assert torch.equal(healthy, before)
    assert found.shape == healthy.shape and factor.shape == (1, *SIZES[dims])
    assert factor.min() >= 0 and factor.max() <= 1 and factor.max() > 0
    outside = (factor == 0).expand_as(healthy)
    assert torch.equal(found[outside], healthy[outside])
    again = pasted(kind, healthy, seed)
    assert torch.equal(again.image, found) and torch.equal(again.factor, factor)


@either
@given(seed=seeds)
def test_a_foreign_patch_is_a_box_mixed_with_another_image(dims: int, seed: int) -> None:
    healthy, other = image(dims), image(dims, seed=1)
    found, factor = foreign_patch(healthy, other, seeded(seed))
    part = float(factor.max())
    assert FACTORS[0] <= part <= FACTORS[1]
    torch.testing.assert_close(found, (1 - factor) * healthy + factor * other)
    inside = factor[0] > 0
    assert torch.equal(factor[0][inside], torch.full_like(factor[0][inside], part))
    for axis, size in enumerate(SIZES[dims]):
        others = [n for n in range(dims) if n != axis]
        line = inside.any(others[1]).any(others[0]) if dims == 3 else inside.any(others[0])
        edge = int(line.sum())
        assert edge <= 0.4 * size + 2
        first = int(line.nonzero()[0])
        assert line[first : first + edge].all()
    bounds = [slice(int(i.min()), int(i.max()) + 1) for i in inside.nonzero().T]
    assert inside[tuple(bounds)].all()


@given(seed=seeds)
def test_a_moved_patch_is_a_part_of_the_same_image(seed: int) -> None:
    """On a ramp of two axes, which says of every pixel where it comes from."""
    rows = torch.arange(40.0)[:, None].expand(40, 56)
    columns = torch.arange(56.0).expand(40, 56)
    found, factor = cut_paste(torch.stack([rows, columns]) / 100, seeded(seed))
    inside = factor[0] > 0
    assert inside.float().mean() <= 1.5 * CUT_AREA[1] + 0.01
    # Neighbours keep their distance, times the change of contrast; the border repeats.
    steps = found[0].diff(dim=0)[(inside[1:] & inside[:-1])]
    if len(steps):
        own = steps[steps > 1e-4] * 100
        assert ((own > 0.89) & (own < 1.11)).all()
        torch.testing.assert_close(own, own[:1].expand_as(own), atol=1e-2, rtol=0)


@either
def test_blobs_differ_in_brightness_and_texture(dims: int) -> None:
    flat = torch.full((1, *SIZES[dims]), 0.5)
    differences, textures = [], []
    for seed in range(20):
        found, factor = noisy_blobs(flat, seeded(seed))
        core = factor > 0.6
        differences.append(float((found - flat)[core].abs().mean()))
        textures.append(float(found[core].std(correction=0)))
    assert min(differences) > 0.01 and 0.1 < sum(differences) / 20 < 0.6
    assert sum(textures) / 20 > 0.01
    assert min(found.min() for found in [noisy_blobs(flat, seeded(n)).image for n in range(9)]) >= 0


@given(seed=seeds)
def test_what_cannot_be_seen_does_not_count(seed: int) -> None:
    healthy = image(2)
    same = foreign_patch(healthy, healthy, seeded(seed))
    assert visible_part(healthy, same).sum() == 0
    other = foreign_patch(healthy, healthy + 1, seeded(seed))
    seen = visible_part(healthy, other)
    expected: Any = (other.factor > 0).float() if float(other.factor.max()) > 0.05 else seen
    assert torch.equal(seen, expected)
