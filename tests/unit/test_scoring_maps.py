"""Score maps: evidence, priors, the median inside the mask, erosion; by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage, special, stats

from medgen.errors import InputError
from medgen.scoring import Scoring, equalised, median_in_mask, score_map
from medgen.scoring.maps import eroded

SHAPE = (9, 10, 8)


@pytest.fixture
def case() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    mask = generator.random(SHAPE) < 0.7
    return {
        "image": generator.random((2, *SHAPE), dtype=np.float32) * mask,
        "restored": generator.random((2, *SHAPE), dtype=np.float32),
        "log_odds": generator.normal(size=(1, *SHAPE)).astype(np.float32),
        "mask": mask,
    }


def scored(case: dict[str, np.ndarray], **settings: object) -> np.ndarray:
    spacing = settings.pop("spacing_mm", None)
    outputs = {key: case[key] for key in ("restored", "log_odds")}
    return score_map(case["image"], outputs, case["mask"], Scoring(**settings), spacing_mm=spacing)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ("residual_positive", lambda d: np.clip(d, 0, None)),
        ("residual_negative", lambda d: np.clip(-d, 0, None)),
        ("residual_absolute", np.abs),
    ],
)
def test_residuals_are_the_mean_over_channels(case, evidence, expected):
    difference = expected(case["image"] - case["restored"]).mean(axis=0)
    np.testing.assert_array_equal(
        scored(case, evidence=evidence), np.where(case["mask"], difference, 0).astype(np.float32)
    )


def test_probability_is_passed_through_inside_the_mask_and_inputs_are_untouched(case):
    before = {key: value.copy() for key, value in case.items()}
    result = scored(case, evidence="probability", intensity_prior=0.5, median=3)
    plain = scored(case, evidence="probability")
    np.testing.assert_array_equal(
        plain, np.where(case["mask"], special.expit(case["log_odds"][0]), 0)
    )
    assert result.dtype == plain.dtype == np.float32
    for key, value in before.items():
        np.testing.assert_array_equal(case[key], value)


def test_soft_prior_follows_its_formula(case):
    e = equalised(case["image"].mean(axis=0), case["mask"])
    expected = scored(case) * (0.4 + 0.6 * e)
    np.testing.assert_allclose(scored(case, intensity_prior=0.6), expected, rtol=1e-6)


def test_hard_prior_silences_all_below_the_brains_percentile(case):
    intensity, inside = case["image"].mean(axis=0), case["mask"]
    result = scored(case, hyperintensity_percentile=90)
    bright = inside & (intensity >= np.percentile(intensity[inside], 90))
    np.testing.assert_array_equal(result, np.where(bright, special.expit(case["log_odds"][0]), 0))
    assert 0.05 < bright.sum() / inside.sum() < 0.15


def test_erosion_is_in_millimetres_and_knows_anisotropic_voxels(case):
    case["mask"] = np.zeros(SHAPE, bool)
    case["mask"][1:8, 1:9, :] = True  # reaches the array's border along z
    result = scored(case, erosion_mm=2.5, spacing_mm=(1.0, 2.0, 3.0)) > 0
    expected = np.zeros(SHAPE, bool)
    expected[3:6, 2:8, :] = True  # 3 > 2.5 mm along x (third voxel), 4 mm along y, 3 mm along z
    np.testing.assert_array_equal(result, expected)


def test_erosion_agrees_with_brute_force_distances():
    generator = np.random.default_rng(0)
    mask, spacing = generator.random((7, 6, 5)) < 0.85, np.array([1.0, 0.7, 2.0])
    outside = np.argwhere(~np.pad(mask, 1)) * spacing
    points = np.argwhere(np.pad(mask, 1)) * spacing
    nearest = np.linalg.norm(points[:, None] - outside[None], axis=-1).min(axis=1)
    np.testing.assert_array_equal(eroded(mask, 1.2, spacing)[mask], nearest > 1.2)


@pytest.mark.parametrize("shape", [(11, 12), (7, 8, 6)])
@pytest.mark.parametrize("width", [3, 5])
def test_median_agrees_with_nanmedian_of_every_window(shape, width):
    generator = np.random.default_rng(1)
    image = generator.random(shape).astype(np.float32)
    mask = generator.random(shape) < 0.5
    padded = np.pad(np.where(mask, image, np.nan), width // 2, constant_values=np.nan)
    result = median_in_mask(image, mask, width)
    for voxel in np.argwhere(mask):
        window = padded[tuple(slice(i, i + width) for i in voxel)]
        assert result[tuple(voxel)] == pytest.approx(np.nanmedian(window), abs=1e-7)
    assert not result[~mask].any()


def test_median_agrees_with_scipy_far_from_the_rim():
    image = np.random.default_rng(2).random((20, 18, 16)).astype(np.float32)
    inside = median_in_mask(image, np.ones(image.shape, bool), 5)[2:-2, 2:-2, 2:-2]
    np.testing.assert_array_equal(inside, ndimage.median_filter(image, 5)[2:-2, 2:-2, 2:-2])


def test_median_ignores_what_lies_outside_the_mask():
    image = np.full((9, 9, 9), 0.7, np.float32)
    mask = np.zeros(image.shape, bool)
    mask[4, 4, 4] = mask[8, 0, 0] = True
    image[~mask] = 100
    np.testing.assert_array_equal(median_in_mask(image, mask, 5)[mask], np.float32(0.7))


def test_equalised_is_the_mean_rank():
    generator = np.random.default_rng(5)
    image, mask = generator.integers(0, 30, SHAPE), generator.random(SHAPE) < 0.5
    ranks = (stats.rankdata(image[mask]) - 0.5) / mask.sum()
    np.testing.assert_allclose(equalised(image, mask)[mask], ranks, rtol=1e-6)


def test_an_empty_mask_gives_an_empty_map(case):
    case["mask"] = np.zeros(SHAPE, bool)
    settings = {"intensity_prior": 1, "hyperintensity_percentile": 90, "median": 3, "erosion_mm": 1}
    assert not scored(case, **settings, spacing_mm=(1, 1, 1)).any()


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({}, {"evidence": "score"}, "'score'.*log_odds, restored"),
        ({"mask": np.ones((3, 3, 3))}, {}, "mask must have the map's shape"),
        ({"log_odds": np.ones((2, *SHAPE))}, {}, "must have shape"),
        ({"log_odds": np.full((1, *SHAPE), np.nan)}, {}, "not finite"),
        ({}, {"erosion_mm": 3}, "spacing_mm"),
    ],
)
def test_wrong_input_is_refused(case, change, settings, words):
    with pytest.raises(InputError, match=words):
        scored(case | change, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"median": 4}, {"median": -1}, {"intensity_prior": 1.5}, {"evidence": "guess"}, {"x": 1}],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        Scoring(**settings)


@pytest.mark.parametrize("brighter", [True, False])
def test_the_side_of_the_prior_follows_the_restoration(case, brighter):
    """Where the scan is brighter than restored, bright voxels are the suspicious ones."""
    shift = np.float32(0.5 if brighter else -0.5)
    outputs = {"log_odds": case["log_odds"], "restored": case["image"] - shift}
    auto, fixed = (
        score_map(case["image"], outputs, case["mask"], Scoring(intensity_prior=1, prior_side=side))
        for side in ("auto", "bright" if brighter else "dark")
    )
    np.testing.assert_allclose(auto, fixed, atol=1e-6)
    assert fixed.any()


def test_the_automatic_side_never_jumps(case):
    """A restoration that hardly differs from the scan must not choose a side by rounding."""
    maps = []
    for shift in (-1e-6, 0.0, 1e-6):
        noise = np.random.default_rng(0).normal(0, 0.1, case["image"].shape).astype(np.float32)
        outputs = {"log_odds": case["log_odds"], "restored": case["image"] + noise + shift}
        scoring = Scoring(intensity_prior=1, prior_side="auto")
        maps.append(score_map(case["image"], outputs, case["mask"], scoring))
    assert np.abs(maps[0] - maps[2]).max() < 1e-4
    assert np.abs(maps[0] - maps[1]).max() < 1e-4


def test_an_automatic_side_needs_a_restored_image(case):
    scoring = Scoring(intensity_prior=1, prior_side="auto")
    with pytest.raises(InputError, match="restored"):
        score_map(case["image"], {"log_odds": case["log_odds"]}, case["mask"], scoring)
