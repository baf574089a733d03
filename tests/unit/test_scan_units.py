"""The restored image in the scan's own values, in two and three dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from medgen.tasks.scan_units import in_scan_units


@pytest.mark.parametrize("shape", [(40, 48, 36), (64, 48), (1200, 1100)])
def test_the_scale_comes_from_what_looks_normal(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    brain = random.random(shape) < 0.7
    lesion = brain & (random.random(shape) < 0.1)
    healthy = random.uniform(300, 700, shape)
    scan = np.where(lesion, 5000, np.where(brain, healthy, -7)).astype(np.float32)
    prepared = np.where(brain, (healthy - 300) / 400, 0).astype(np.float32)
    found = in_scan_units(prepared, scan, lesion.astype(np.float32), brain)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[brain], healthy[brain], rtol=1e-4)
    assert (found[~brain] == -7).all()


def test_a_restoration_unlike_the_scan_spans_its_range() -> None:
    scan = np.linspace(100, 900, 8000, dtype=np.float32).reshape(20, 20, 20)
    brain = np.ones(scan.shape, dtype=bool)
    found = in_scan_units(np.full(scan.shape, 0.5), scan, np.zeros(scan.shape), brain)
    np.testing.assert_allclose(found, 500, atol=5)
    nothing = np.zeros(scan.shape, dtype=bool)
    assert (in_scan_units(np.zeros(scan.shape), scan, np.zeros(scan.shape), nothing) == scan).all()
