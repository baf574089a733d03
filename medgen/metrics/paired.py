"""How near is a result to its reference, voxel by voxel? Pairs of images of one grid.

Every measure can be taken inside a mask only, which is what matters for inpainting: outside the
hole the result is the scan itself, and a number over the whole image would praise that. A measure
that is not defined for a pair is None with the reason beside it, never NaN or infinity, so that no
mean hides it. Structural similarity is computed in 64 bits and slab by slab, for whole scans; the
one in :mod:`medgen.losses`, for training, is held against it by a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.errors import InputError
from medgen.metrics.anomaly import bootstrap_interval

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Wang, Bovik, Sheikh and Simoncelli 2004: a Gaussian of 1.5 voxels cut at 11.
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
# Wang, Simoncelli and Bovik 2003, from fine to coarse.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# SSIM needs about eight arrays of 8 bytes a voxel; large volumes are done slab by slab.
SLAB_VOXELS = 4_000_000


class Measure(NamedTuple):
    """A number, or why there is none."""

    value: float | None
    why: str = ""


@dataclass(frozen=True)
class PairedTest:
    """Do two methods differ on the same subjects?

    Attributes:
        difference: Mean of first minus second.
        interval: 95 % bootstrap interval of the difference; None with fewer than two subjects.
        p_value: Two-sided Wilcoxon signed-rank test (1945); 1 if no subject differs.
        subjects: How many have both numbers.
        smallest_p_value: What the test could reach at all with so many: with four never below
            0.125.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float
    subjects: int
    smallest_p_value: float


def paired_test(first: ArrayLike, second: ArrayLike, seed: int = 0) -> PairedTest:
    """Compare two methods subject by subject.

    Args:
        first: One number per subject ``(N,)``, finite.
        second: Of the same subjects in the same order.
        seed: Of the bootstrap.

    Raises:
        InputError: No subject, or different numbers of them.
    """
    from scipy.stats import wilcoxon

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise InputError(f"a paired test needs two equal lists, got {a.shape} and {b.shape}")
    difference = a - b
    found = bootstrap_interval(difference, seed=seed) if len(difference) > 1 else None
    return PairedTest(
        difference=float(difference.mean()),
        interval=None if found is None else (found.low, found.high),
        p_value=float(wilcoxon(difference).pvalue) if difference.any() else 1.0,
        subjects=len(difference),
        smallest_p_value=min(1.0, 2.0 ** (1 - len(difference))),
    )


def mean_absolute_error(reference: ArrayLike, result: ArrayLike, mask: Mask | None = None) -> float:
    """MAE in the unit of the images, 0 and up."""
    return float(np.abs(_difference(reference, result, mask)).mean())


def mean_squared_error(reference: ArrayLike, result: ArrayLike, mask: Mask | None = None) -> float:
    """MSE in the squared unit of the images, 0 and up."""
    return float(np.square(_difference(reference, result, mask)).mean())


def psnr(
    reference: ArrayLike, result: ArrayLike, data_range: float, mask: Mask | None = None
) -> float:
    """Peak signal-to-noise ratio ``10 log10(range^2 / MSE)`` in dB; infinite for equal images.

    Args:
        reference: The truth.
        result: What is compared with it.
        data_range: Largest minus smallest possible value. Numbers of different ranges cannot be
            compared.
        mask: Where to look, or everywhere.
    """
    error = mean_squared_error(reference, result, mask)
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(
    reference: ArrayLike, result: ArrayLike, data_range: float, mask: Mask | None = None
) -> float:
    """Mean structural similarity, -1..1; 1 for equal images (Wang et al. 2004), 2-D or 3-D.

    The window is a Gaussian of 1.5 voxels, 11 wide. Without a mask the mean is over all places
    where the whole window lies in the image. With one it is over the mask's voxels, so windows
    there see a few voxels around it, and those at the image's edge see it mirrored.

    Args:
        reference: The truth ``(*spatial)``.
        result: What is compared with it.
        data_range: Largest minus smallest possible value.
        mask: Where to look, or everywhere.

    Raises:
        InputError: The image is narrower than the window.
    """
    a, b = _pair(reference, result)
    scales(a.shape)
    return _mean_terms(a, b, data_range, _weight(a.shape, mask))[0]


def ms_ssim(
    reference: ArrayLike, result: ArrayLike, data_range: float, mask: Mask | None = None
) -> float:
    """Structural similarity at up to five scales, 0..1 (Wang et al. 2003), 2-D or 3-D.

    Images too small for five scales use as many as fit, with the first weights scaled to sum to
    one: only values of equal image sizes can be compared. Negative terms count as 0. At coarser
    scales a voxel counts as much as its share of the mask.

    Args:
        reference: The truth ``(*spatial)``.
        result: What is compared with it.
        data_range: Largest minus smallest possible value.
        mask: Where to look, or everywhere.

    Raises:
        InputError: The image is narrower than the window, or the mask only lies in a last row that
            a coarser scale leaves out.
    """
    a, b = _pair(reference, result)
    count = scales(a.shape)
    share = None if mask is None else np.asarray(mask, np.float64)
    value = 1.0
    for scale, weight in enumerate(WEIGHTS[:count]):
        if share is not None and not share.any():
            raise InputError("nothing of the mask is left at the coarser scales")
        similarity, contrast = _mean_terms(a, b, data_range, _weight(a.shape, share))
        term = similarity if scale == count - 1 else contrast
        value *= max(term, 0.0) ** (weight / sum(WEIGHTS[:count]))
        a, b = _halved(a), _halved(b)
        share = None if share is None else _halved(share)
    return value


def scales(size: tuple[int, ...]) -> int:
    """How often an image can be halved, at most five times in all, and still hold the window.

    Raises:
        InputError: Not even the image itself does.
    """
    count = 0
    while count < len(WEIGHTS) and min(size) >> count >= WINDOW:
        count += 1
    if not count:
        raise InputError(f"SSIM needs images of at least {WINDOW} voxels a side, got {size}")
    return count


# Name: its unit, and whether more is better.
MEASURES: dict[str, tuple[str, bool]] = {
    "mae": ("unit of the image", False),
    "mse": ("unit of the image, squared", False),
    "psnr": ("dB", True),
    "ssim": ("", True),
    "ms_ssim": ("", True),
}


def compare(
    reference: NDArray[Any], result: NDArray[Any], data_range: float, mask: Mask | None = None
) -> dict[str, Measure]:
    """All of :data:`MEASURES` of one pair, of several channels their mean.

    Args:
        reference: The truth ``(C, *spatial)``, finite.
        result: What is compared with it, of the same shape.
        data_range: Largest minus smallest possible value.
        mask: Where to look ``(*spatial)``, or everywhere.

    Raises:
        InputError: The shapes differ.
    """
    if reference.shape != result.shape:
        msg = f"images of one shape are compared, got {reference.shape} and {result.shape}"
        raise InputError(msg)
    shape = tuple(size for size in reference.shape[1:] if size > 1)  # one slice is a picture
    a = reference.reshape(len(reference), *shape)
    b = result.reshape(len(result), *shape)
    inside = None if mask is None else np.asarray(mask, bool).reshape(shape)
    if inside is not None and not inside.any():
        return dict.fromkeys(MEASURES, Measure(None, "the mask is empty"))
    everywhere = None if inside is None else np.broadcast_to(inside, a.shape)
    error = mean_squared_error(a, b, everywhere)
    found = {"mae": Measure(mean_absolute_error(a, b, everywhere)), "mse": Measure(error)}
    if data_range <= 0:
        constant = Measure(None, "the reference has one value only, so no range")
        return found | dict.fromkeys(("psnr", "ssim", "ms_ssim"), constant)
    identical = Measure(None, "identical images: infinite")
    found["psnr"] = identical if error == 0 else Measure(psnr(a, b, data_range, everywhere))
    for name, function in (("ssim", ssim), ("ms_ssim", ms_ssim)):
        found[name] = _structural(function, a, b, data_range, inside)
    return found


def _structural(
    function: Callable[..., float], a: NDArray[Any], b: NDArray[Any], data_range: float,
    mask: Mask | None,
) -> Measure:  # fmt: skip
    if not a.shape[1:] or min(a.shape[1:]) < WINDOW:
        return Measure(None, f"narrower than the window of {WINDOW} voxels")
    try:
        values = [function(x, y, data_range, mask) for x, y in zip(a, b, strict=True)]
    except InputError as error:
        return Measure(None, str(error))
    return Measure(float(np.mean(values)))


def _pair(reference: ArrayLike, result: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = np.asarray(reference), np.asarray(result)
    if a.shape != b.shape:
        raise InputError(f"images of one shape are compared, got {a.shape} and {b.shape}")
    return a, b


def _difference(reference: ArrayLike, result: ArrayLike, mask: Mask | None) -> Floats:
    a, b = _pair(reference, result)
    if mask is not None:
        a, b = a[mask], b[mask]
    if not a.size:
        raise InputError("there is no voxel to compare")
    return np.subtract(b, a, dtype=np.float64)


def _weight(shape: tuple[int, ...], mask: NDArray[Any] | None) -> Floats:
    """How much each voxel counts: its share of the mask, or 1 where the whole window fits."""
    if mask is not None:
        return np.asarray(mask, np.float64)
    weight = np.zeros(shape)
    weight[tuple(slice(WINDOW // 2, size - WINDOW // 2) for size in shape)] = 1.0
    return weight


def _mean_terms(
    a: NDArray[Any], b: NDArray[Any], data_range: float, weight: Floats
) -> tuple[float, float]:
    """Weighted means of SSIM and of its contrast-structure part."""
    similarity = contrast = 0.0
    for reach, inner in _slabs(a.shape):
        luminance, structure = _terms(a[reach], b[reach], data_range)
        part = weight[reach][inner]
        contrast += float((structure[inner] * part).sum())
        similarity += float((luminance[inner] * structure[inner] * part).sum())
    total = float(weight.sum())
    return similarity / total, contrast / total


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Parts of the first axis with what their windows reach, and where the part lies in that."""
    step = max(1, SLAB_VOXELS // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        low, stop = max(0, start - WINDOW // 2), min(start + step, shape[0])
        yield slice(low, stop + WINDOW // 2), slice(start - low, stop - low)


def _terms(a: NDArray[Any], b: NDArray[Any], data_range: float) -> tuple[Floats, Floats]:
    """Luminance, and contrast-structure, of every voxel."""
    from scipy.ndimage import gaussian_filter

    # In 64 bits: a variance is a small difference of large squares where values start at -1000.
    x, y = a.astype(np.float64), b.astype(np.float64)

    def blur(image: Floats) -> Floats:
        return np.asarray(gaussian_filter(image, SIGMA, radius=WINDOW // 2, mode="reflect"))

    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) + blur(y * y) - mean_x**2 - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _halved(image: NDArray[Any]) -> Floats:
    """Means of blocks of two voxels a side; an odd last row is left out."""
    blocks = image[tuple(slice(0, size // 2 * 2) for size in image.shape)].astype(np.float64)
    for axis in range(image.ndim):
        even, odd = (np.take(blocks, range(n, blocks.shape[axis], 2), axis) for n in (0, 1))
        blocks = (even + odd) / 2
    return blocks
