"""Named protocols: each step does what the paper does, and names and changes are said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medgen.errors import InputError
from medgen.phantoms import brain
from medgen.preparation import Preparation
from medgen.scoring import Scoring
from medgen.tasks.anomaly_protocols import (
    PROTOCOLS,
    eroded_in_slices,
    evidence_of,
    protocol,
    scored,
    variants,
    without_small_regions,
)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(((9, 9), (9, 9, 9), (1, 12), (2, 5), (3, 1, 20))),
    st.integers(1, 40),
)
def test_small_regions_are_gone_at_every_threshold(seed, shape, minimum):
    generator, dims = np.random.default_rng(seed), len(shape)
    scores = ndimage.gaussian_filter(generator.random(shape), 0.6).astype(np.float32)
    scores = np.round(scores * 20) / np.float32(20)
    scores[generator.random(scores.shape) < 0.3] = 0
    opened = without_small_regions(scores, minimum)
    for level in np.unique(scores[scores > 0]):
        labels, _ = ndimage.label(scores >= level, np.ones((3,) * dims))
        large = np.bincount(labels.ravel()) >= minimum
        large[0] = False
        np.testing.assert_array_equal(opened >= level, large[labels])


@given(st.integers(0, 1000), st.integers(1, 3))
def test_erosion_goes_slice_by_slice_with_a_cross(seed, iterations):
    mask = ndimage.binary_dilation(
        np.random.default_rng(seed).random((14, 13, 5)) < 0.05, iterations=4
    )
    cross = ndimage.generate_binary_structure(2, 1)
    expected = [
        ndimage.binary_erosion(mask[:, :, k], cross, iterations=iterations) for k in range(5)
    ]
    np.testing.assert_array_equal(eroded_in_slices(mask, iterations), np.stack(expected, axis=2))
    np.testing.assert_array_equal(eroded_in_slices(mask[:, :, 0], iterations), expected[0])


def test_a_prior_always_brings_its_row_without():
    names = [variant.name for variant in variants(list(PROTOCOLS.values()))]
    assert names[:2] == ["baur2021", "baur2021, no prior"]
    assert [n for n in names if "no prior" in n] == ["baur2021, no prior"]
    without = variants([PROTOCOLS["baur2021"]])[1].protocol
    assert without.hyperintensity_percentile == 0
    assert without.erosion_voxels == PROTOCOLS["baur2021"].erosion_voxels == 12


def test_changes_are_said_and_unknown_names_are_refused():
    changed = protocol({"name": "image_level", "scan_score": "highest"})
    assert changed.scan_score == "highest"
    assert "changed: scan_score highest" in changed.differs
    both = variants([protocol("image_level"), changed])
    assert [one.name for one in both] == ["image_level", "image_level, scan_score highest"]
    with pytest.raises(InputError, match="named twice"):
        variants([changed, changed])
    assert protocol("kascenas2022") is PROTOCOLS["kascenas2022"]
    with pytest.raises(InputError, match="Did you mean 'baur2021'"):
        protocol("bauer2021")
    with pytest.raises(InputError, match="unknown key 'medain'"):
        protocol({"name": "baur2021", "medain": 3})


def test_the_evidence_is_the_first_that_a_method_offers():
    nothing = np.zeros((1, 2, 2), np.float32)
    baur = PROTOCOLS["baur2021"]
    assert evidence_of(baur, {"score": nothing, "restored": nothing}) == "residual_positive"
    assert evidence_of(baur, {"log_odds": nothing}) == "probability"
    both = {"score": nothing, "restored": nothing}
    assert evidence_of(PROTOCOLS["image_level"], both) == "score"
    with pytest.raises(InputError, match="the method gives nothing"):
        evidence_of(baur, {})


@pytest.fixture(scope="module")
def prepared():
    head = brain((40, 44), spacing_mm=4.0, contrast="flair", lesion_radius_mm=14.0)
    return Preparation(spacing_mm=4.0).apply(head.image), head


def test_baurs_map_is_made_step_by_step(prepared):
    scan, _ = prepared
    image, inside = np.asarray(scan.image), np.asarray(scan.mask)[0]
    restored = ndimage.gaussian_filter(image, (0, 3, 3))
    baur = protocol({"name": "baur2021", "erosion_voxels": 2, "median": 0, "minimum_voxels": 1})
    found = scored(scan, {"restored": restored}, baur)
    expected = np.maximum(image[0] - restored[0], 0)
    expected[image[0] < np.percentile(image[0][inside], 90)] = 0
    expected[~ndimage.binary_erosion(inside, iterations=2)] = 0
    on_scan = np.where(scan.source_mask, scan.to_source(expected[None])[0], 0)
    np.testing.assert_allclose(found, on_scan, atol=1e-6)
    assert not found[~scan.source_mask].any()
    with pytest.raises(InputError, match="erodes the region by 40 voxels, which leaves nothing"):
        scored(scan, {"restored": restored}, baur.model_copy(update={"erosion_voxels": 40}))
    # The prior only takes away.
    without = scored(scan, {"restored": restored}, variants([baur])[1].protocol)
    assert (without >= found - 1e-6).all()
    assert (without > 0).sum() > (found > 0).sum()


def test_a_model_without_a_package_has_nothing_shipped(prepared):
    scan, _ = prepared
    outputs = {"score": np.asarray(scan.image)}
    shipped = PROTOCOLS["as_shipped"]
    with pytest.raises(InputError, match="needs a model package"):
        scored(scan, outputs, shipped)
    own = scored(scan, outputs, shipped, shipped=Scoring(evidence="score"))
    assert own.max() > 0
