"""The ring of Gaussians, and that coverage tells a generator that covers it from one that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from mixture_modes import trial

from medgen.errors import InputError
from medgen.toy import MixtureConfig, MixtureSource


def test_points_lie_on_the_ring_and_batches_are_a_function_of_their_number() -> None:
    source = MixtureSource(MixtureConfig(seed=3, batch_size=4000))
    image = source.batch(5)["image"]
    assert image.shape == (4000, 2, 1, 1)
    assert image.abs().max() < 1
    assert torch.equal(image, source.batch(5)["image"])
    assert not torch.equal(image, source.batch(6)["image"])
    assert not torch.equal(image, source.validation_batch(5)["image"])
    coverage = source.coverage(image)
    assert coverage.modes == 8
    assert coverage.near == pytest.approx(1 - torch.exp(torch.tensor(-4.5)).item(), abs=0.006)


@pytest.mark.parametrize("hit", [1, 3, 8])
def test_coverage_counts_the_modes_that_hold_their_share(hit: int) -> None:
    source = MixtureSource(MixtureConfig())
    points = source.centres[torch.arange(2000) % hit]
    few = source.centres[torch.arange(20) % 8]  # a handful is not a mode
    coverage = source.coverage(torch.cat([points, few, torch.zeros(500, 2)]))
    assert coverage.modes == hit
    assert coverage.near == pytest.approx(2020 / 2520)


def test_a_point_is_an_image_of_one_pixel() -> None:
    with pytest.raises(InputError, match="1, 1"):
        MixtureSource(MixtureConfig(size=(2, 2)))


@pytest.mark.slow
def test_a_penalised_pair_covers_the_ring_and_a_hasty_generator_collapses() -> None:
    """The benchmark in small; the failure is planted: a generator 100 times faster."""
    fair, points = trial({"penalty": "r1", "penalty_weight": 0.1, "width": 128}, 0, 900)
    assert fair.modes >= 7
    assert fair.near > 0.15
    hasty = {"loss": "hinge", "generator_rate": 1e-2, "critic_rate": 1e-4}
    failed, collapsed = trial(hasty, 0, 400)
    assert failed.modes <= 1
    assert torch.pdist(collapsed[:200]).median() < 0.2 * torch.pdist(points[:200]).median()
