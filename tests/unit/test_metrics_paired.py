"""Measures of pairs against scikit-image, scipy and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from medgen.errors import InputError
from medgen.metrics import paired, similarity
from medgen.metrics.paired import compare, paired_test


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with noise, and the same with other noise, from -1000 up."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(0, 5, n) for n in shape], indexing="ij")
    smooth = 400 * np.sin(sum(axes)) - 600
    noise = generator.standard_normal((2, *shape)) * 60
    return (smooth + noise[0]).astype(np.float32), (0.9 * smooth + noise[1]).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 33), (24, 19, 27)])
def test_against_scikit_image(shape):
    a, b = pair(shape)
    span = float(a.max() - a.min())
    found = compare(a[None], b[None], span)
    expected = structural_similarity(
        a.astype(np.float64), b.astype(np.float64), data_range=span, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert found["ssim"].value == pytest.approx(expected, abs=1e-9)
    assert found["mse"].value == pytest.approx(mean_squared_error(a, b), rel=1e-6)
    assert found["psnr"].value == pytest.approx(
        peak_signal_noise_ratio(a, b, data_range=span), abs=1e-5
    )
    assert found["mae"].value == pytest.approx(np.abs(a - b).mean(), rel=1e-5)


@pytest.mark.parametrize("shape", [(48, 33), (24, 45, 27)])
def test_inside_a_mask_is_the_mean_of_scikit_images_map(shape):
    a, b = pair(shape)
    mask = np.zeros(shape, bool)
    mask[tuple(slice(2, n // 2) for n in shape)] = True
    span = float(a.max() - a.min())
    _, every = structural_similarity(
        a.astype(np.float64), b.astype(np.float64), data_range=span, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    found = compare(a[None], b[None], span, mask)
    assert found["ssim"].value == pytest.approx(every[mask].mean(), abs=1e-9)
    assert found["mse"].value == pytest.approx(mean_squared_error(a[mask], b[mask]), rel=1e-6)


def test_what_happens_outside_the_mask_does_not_count_but_for_the_windows_reach():
    a, b = pair((64, 64))
    mask = np.zeros(a.shape, bool)
    mask[20:30, 20:30] = True
    other = b.copy()
    other[40:] = 0
    inside, same = compare(a[None], b[None], 800, mask), compare(a[None], other[None], 800, mask)
    for name in ("mae", "mse", "psnr", "ssim"):
        assert inside[name] == same[name]
    assert compare(a[None], other[None], 800)["mae"] != inside["mae"]


@pytest.mark.parametrize("shape", [(180, 177), (90, 33), (26, 24, 31)])
def test_ms_ssim_agrees_with_the_one_for_batches(shape):
    a, b = (x + 1000 for x in pair(shape))  # in 32 bits it needs values near zero
    tensors = (torch.from_numpy(x)[None, None] for x in (a, b))
    batch = similarity.ms_ssim(*tensors, data_range=800.0)
    assert paired.ms_ssim(a, b, 800.0) == pytest.approx(float(batch), abs=2e-4)


def test_a_mask_of_everything_hardly_differs_from_none_and_slabs_change_nothing(monkeypatch):
    a, b = pair((40, 30, 30))
    whole = compare(a[None], b[None], 800, np.ones(a.shape, bool))
    bare = compare(a[None], b[None], 800)
    assert whole["ssim"].value == pytest.approx(bare["ssim"].value, abs=0.05)
    monkeypatch.setattr(paired, "SLAB_VOXELS", 900 * 7)
    slabs = compare(a[None], b[None], 800)
    for name, measure in bare.items():
        assert slabs[name].value == pytest.approx(measure.value, abs=1e-12), name


def test_undefined_says_why_and_nothing_is_nan():
    a, b = pair((20, 20))
    same = compare(a[None], a[None], 800)
    assert same["psnr"].value is None and "identical" in same["psnr"].why
    assert same["ssim"].value == pytest.approx(1) and same["mae"].value == 0
    narrow = compare(a[None, :, :5], b[None, :, :5], 800)
    assert narrow["ssim"].value is None and "11 voxels" in narrow["ssim"].why
    assert narrow["psnr"].value is not None
    flat = compare(np.ones((1, 20, 20)), b[None], 0.0)
    assert flat["psnr"].value is None and flat["ms_ssim"].value is None and flat["mae"].value
    empty = compare(a[None], b[None], 800, np.zeros(a.shape, bool))
    assert all(m.value is None and "empty" in m.why for m in empty.values())
    a, b = pair((45, 24))
    last = np.zeros(a.shape, bool)
    last[44] = True  # the row that halving leaves out
    rim = compare(a[None], b[None], 800, last)
    assert rim["ssim"].value is not None
    assert rim["ms_ssim"].value is None and "coarser" in rim["ms_ssim"].why
    for found in (same, narrow, flat, empty, rim):
        assert all(m.why if m.value is None else np.isfinite(m.value) for m in found.values())
    with pytest.raises(InputError, match="one shape"):
        compare(a[None], b[None, 1:], 800)


def test_one_slice_is_a_picture_and_channels_are_averaged():
    a, b = pair((30, 25))
    assert compare(a[None, ..., None], b[None, ..., None], 800) == compare(a[None], b[None], 800)
    c, d = pair((30, 25), seed=1)
    both = compare(np.stack([a, c]), np.stack([b, d]), 800)
    each = [compare(a[None], b[None], 800), compare(c[None], d[None], 800)]
    for name in ("mae", "mse", "ssim", "ms_ssim"):
        assert both[name].value == pytest.approx(np.mean([e[name].value for e in each]))


def test_paired_test_is_scipys_and_knows_its_limits():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.3, 1, 12), generator.normal(0, 1, 12)
    found = paired_test(a, b)
    assert found.p_value == pytest.approx(wilcoxon(a, b).pvalue)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.smallest_p_value == pytest.approx(wilcoxon(np.arange(1, 13)).pvalue)
    same = paired_test(a, a)
    assert same.p_value == 1 and same.interval == (0, 0)
    one = paired_test([1.0], [0.5])
    assert one.interval is None and one.p_value == 1 and one.smallest_p_value == 1
    with pytest.raises(InputError, match="equal lists"):
        paired_test([1.0], [1.0, 2.0])
