"""Known loss of resolution: from fine voxels to coarse ones, and exactly back.

A scanner with large voxels sees the anatomy through a point-spread function (in the plane) or a
slice profile (across slices). Both are taken as a Gaussian whose full width at half maximum
(FWHM) is about one coarse voxel, the usual model of acquisition (Greenspan, "Super-resolution in
medical imaging", Comput J 2009). It is separable: one small matrix per axis. So the degradation
``A`` is an exact linear operator with the pseudo-inverse ``A^+ = A' (A A')^-1``, and
``x + A^+ (y - A x)`` is the image nearest to ``x`` that degrades to the measured scan ``y``.

A scan has noise, which such a projection would copy and sharpen. If the errors of ``x`` are white
with variance ``t2`` and the noise has variance ``s2``, the most probable image is
``x + A' (A A' + s2 / t2)^-1 (y - A x)``: the same with a damping ``s2 / t2`` (Tikhonov 1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))
# Slices that are corrected at a time.
SLAB = 32


class Axis(Protocol):
    """What the operators below ask of an axis that loses resolution."""

    @property
    def step(self) -> float:
        """Size of a coarse voxel in fine voxels."""

    def matrix(self) -> Tensor:
        """The degradation ``(coarse, fine)``; each row sums to one."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Sampling:
    """How one axis goes from fine to coarse voxels.

    Both grids cover the same field of view: their outer edges agree. The voxel size ratio is
    therefore ``fine / coarse``, which need not be an integer.

    Attributes:
        fine: Number of fine voxels.
        coarse: Number of coarse voxels, at most `fine`.
        fwhm: Full width at half maximum of the Gaussian, in coarse voxels.

    Raises:
        ValueError: If a size or width is not positive, or there are more coarse voxels than fine.
    """

    fine: int
    coarse: int
    fwhm: float = 1.0

    def __post_init__(self) -> None:
        if not (1 <= self.coarse <= self.fine and self.fwhm > 0):
            msg = f"{self} is no loss of resolution: expected 1 <= coarse <= fine and fwhm > 0"
            raise ValueError(msg)

    @property
    def step(self) -> float:
        """Size of a coarse voxel in fine voxels."""
        return self.fine / self.coarse

    def matrix(self) -> Tensor:
        """The degradation (coarse, fine) in float64: one normalised Gaussian per coarse voxel.

        Each row sums to one, so a constant image stays constant, up to the border.
        """
        return _matrix(self)


def sampling_for(fine: int, factor: float, fwhm: float = 1.0) -> Sampling:
    """The sampling of `fine` voxels whose coarse voxel is nearest to `factor` fine ones.

    Args:
        fine: Number of fine voxels.
        factor: Wanted size of a coarse voxel in fine voxels, at least 1.
        fwhm: Full width at half maximum of the Gaussian, in coarse voxels.
    """
    return Sampling(fine, min(fine, max(1, round(fine / factor))), fwhm)


# Training asks for the same few again and again. What is cached is never changed.
@lru_cache(maxsize=64)
def _matrix(sampling: Sampling) -> Tensor:
    sigma = sampling.fwhm * sampling.step * SIGMA_PER_FWHM
    fine = torch.arange(sampling.fine, dtype=torch.float64) + 0.5
    coarse = (torch.arange(sampling.coarse, dtype=torch.float64) + 0.5) * sampling.step
    # softmax is exp over its sum, and does not vanish when the Gaussian is very narrow.
    return torch.softmax(-0.5 * ((fine - coarse[:, None]) / sigma) ** 2, dim=1)


@lru_cache(maxsize=64)
def _spectrum(sampling: Axis) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(coarse,)`` and eigenvectors ``(coarse, coarse)`` of ``A A'``."""
    matrix = sampling.matrix()
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return values, vectors


def downsample(image: Tensor, samplings: Sequence[Axis | None]) -> Tensor:
    """Degrade an image: ``A image``, an exact linear operator.

    Args:
        image: ``(..., *fine)``; the last axes are the spatial ones.
        samplings: One per spatial axis; None keeps the axis as it is.

    Returns:
        ``(..., *coarse)`` in the type of `image`.
    """
    # The strongest reduction first: the least remains to be done for the others.
    order = sorted(_active(samplings), key=lambda pair: -pair[1].step)
    for axis, sampling in order:
        image = along(image, sampling.matrix(), axis)
    return image


def back_project(
    measured: Tensor, samplings: Sequence[Axis | None], damping: float = 0.0
) -> Tensor:
    """The smallest image that degrades to `measured`: ``A' (A A' + damping)^-1 measured``.

    Args:
        measured: ``(..., *coarse)``.
        samplings: One per spatial axis; None keeps the axis as it is.
        damping: How much is left to noise; with 0 the result degrades to `measured` exactly.

    Returns:
        ``(..., *fine)`` in the type of `measured`.
    """
    return _adjoint(_whitened(measured, samplings, damping), samplings)


def consistent(
    image: Tensor, measured: Tensor, samplings: Sequence[Axis | None], damping: float = 0.0
) -> Tensor:
    """The image nearest to `image` that degrades to `measured` (up to rounding and damping).

    Args:
        image: ``(*fine)``.
        measured: ``(*coarse)``, what ``A image`` should have been.
        samplings: One per axis; None keeps the axis as it is.
        damping: How much is left to noise, as :func:`noise_damping` finds it.

    Returns:
        ``image + A' (A A' + damping)^-1 (measured - A image)``, ``(*fine)``; a new tensor.
    """
    residual = measured - downsample(image, samplings)
    return correct(image.clone(), residual, samplings, damping)


def correct(
    image: Tensor, residual: Tensor, samplings: Sequence[Axis | None], damping: float = 0.0
) -> Tensor:
    """Add the back projection of a residual in place, slab by slab: no second volume is needed.

    Args:
        image: ``(*fine)``; changed.
        residual: ``(*coarse)``, the measured image minus ``A image``.
        samplings: One per axis; None keeps the axis as it is.
        damping: As for :func:`consistent`; nothing is added if it is infinite.

    Returns:
        `image`.
    """
    if math.isinf(damping):
        return image
    weights = _whitened(residual, samplings, damping)
    first, *others = samplings
    for start in range(0, len(image), SLAB):
        rows = slice(start, start + SLAB)
        if first is None:
            part = weights[rows]
        else:
            part = along(weights, first.matrix().T[rows], -weights.ndim)
        image[rows] += _adjoint(part, [None, *others])
    return image


def noise_damping(residual: Tensor, samplings: Sequence[Axis | None], noise: float) -> float:
    """The damping that a residual calls for, if the scan has noise of a known strength.

    Args:
        residual: The measured image minus ``A image``, of any shape: what counts of it.
        samplings: One per axis.
        noise: Standard deviation of the scan's noise.

    Returns:
        The ratio of the variance of the noise to that of the image's errors, which is what the
        noise leaves of the residual; infinite if it leaves nothing.
    """
    gain = math.prod(float(_spectrum(item)[0].mean()) for _, item in _active(samplings))
    errors = (float(residual.double().square().mean()) - noise**2) / gain
    return noise**2 / errors if errors > 0 else math.inf


def _whitened(residual: Tensor, samplings: Sequence[Axis | None], damping: float) -> Tensor:
    """``(A A' + damping)^-1 residual``, by the eigenvectors of each axis."""
    active = [(axis, *_spectrum(item)) for axis, item in _active(samplings)]
    power = residual.new_ones((1,) * residual.ndim)
    for axis, values, vectors in active:
        power = power * values.to(residual).reshape(-1, *(1,) * (-axis - 1))
        residual = along(residual, vectors.T, axis)
    residual = residual / (power + damping)
    for axis, _, vectors in active:
        residual = along(residual, vectors, axis)
    return residual


def _adjoint(weights: Tensor, samplings: Sequence[Axis | None]) -> Tensor:
    """``A' weights``; the axis that grows least first."""
    for axis, sampling in sorted(_active(samplings), key=lambda pair: pair[1].step):
        weights = along(weights, sampling.matrix().T, axis)
    return weights


def _active(samplings: Sequence[Axis | None]) -> list[tuple[int, Axis]]:
    """The axes that change, counted from the last."""
    dims = len(samplings)
    return [(axis - dims, item) for axis, item in enumerate(samplings) if item is not None]


def along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply a matrix (m, n) along one axis of length n, without moving the axis in memory.

    Args:
        image: Of any shape.
        matrix: In any type; it is brought to that of the image.
        axis: Counted from the last, -1.
    """
    if image.shape[axis] != matrix.shape[1]:
        msg = f"axis {axis} of {tuple(image.shape)} should have {matrix.shape[1]} voxels"
        raise ValueError(msg)
    matrix = matrix.to(image)
    before, after = image.shape[:axis], image.shape[axis:][1:]
    if not after:
        return image @ matrix.T
    out = matrix @ image.reshape(*before, matrix.shape[1], -1)
    return out.reshape(*before, matrix.shape[0], *after)
