"""Small synthetic heads with ground truth, for tests, examples and first tries.

The anatomy is drawn in millimetres by formulas, not on a grid: warped ellipsoids for the head,
the brain, the ventricles and the deep grey matter, and the zero crossings of a random wave field
for the sulci. One seed therefore gives one head, whatever the voxel size, and a 2-D phantom is
the axial slice through the middle of the 3-D one. It is made to have the right *kind* of structure
(nested tissues, folded cortex, smooth bias, Rician noise); it is nobody's anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.errors import InputError
from medgen.volume import Provenance, Volume

Contrast = Literal["t1", "t2", "flair"]
Field = NDArray[np.float32]
Axes = list[NDArray[Any]]  # voxel centres along x, y and z in mm

# FreeSurfer's numbers where it has one; 500 and above lies outside the brain.
BACKGROUND, WHITE_MATTER, CORTEX, VENTRICLE, DEEP_GREY, CSF = 0, 2, 3, 4, 10, 24
SCALP, SKULL = 507, 511
LESION = -1  # has a brightness, never a label

# Typical brightness of each tissue, as a fraction of the brightest.
BRIGHTNESS: dict[str, dict[int, float]] = {
    "t1": {
        WHITE_MATTER: 0.85, CORTEX: 0.58, DEEP_GREY: 0.68, VENTRICLE: 0.16, CSF: 0.20,
        SKULL: 0.08, SCALP: 0.90, LESION: 0.45,
    },
    "t2": {
        WHITE_MATTER: 0.36, CORTEX: 0.52, DEEP_GREY: 0.44, VENTRICLE: 0.98, CSF: 0.92,
        SKULL: 0.06, SCALP: 0.55, LESION: 0.80,
    },
    "flair": {
        WHITE_MATTER: 0.50, CORTEX: 0.62, DEEP_GREY: 0.58, VENTRICLE: 0.12, CSF: 0.18,
        SKULL: 0.06, SCALP: 0.70, LESION: 0.95,
    },
}  # fmt: skip
BRIGHTEST = 1000.0  # scanner units, as arbitrary as a real scanner's
NOISE = 0.02  # standard deviation, as a fraction of the brightest

BRAIN_SEMI_AXES_MM = (64.0, 80.0, 58.0)
SKULL_AND_SCALP_MM = 12.0


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic head and everything that is known about it.

    Attributes:
        image: One channel, float32, 0 to about 1000; exactly 0 outside the brain unless the
            phantom has a skull.
        labels: int16 ``(X, Y[, Z])``: 0 background, 2 white matter, 3 cortex, 4 ventricle,
            10 deep grey matter, 24 cerebrospinal fluid, 507 scalp, 511 skull. The lesion is not a
            label: under it stands the tissue that would be there in health.
        lesion: bool ``(X, Y[, Z])``, the planted lesion; all False if there is none.
        brain: bool ``(X, Y[, Z])``, the brain with its fluid, without skull and scalp.
    """

    image: Volume
    labels: NDArray[np.int16]
    lesion: NDArray[np.bool_]
    brain: NDArray[np.bool_]


def brain(
    shape: Sequence[int] = (48, 56, 40),
    *,
    spacing_mm: float | Sequence[float] = 3.0,
    seed: int = 0,
    contrast: Contrast = "t1",
    skull: bool = False,
    lesion_radius_mm: float | None = None,
) -> Phantom:
    """Draw a head.

    Args:
        shape: ``(X, Y, Z)``, or ``(X, Y)`` for an axial slice; the head shrinks to fit a small
            field of view.
        spacing_mm: Voxel size, one number or one per axis.
        seed: Chooses the head, the noise and the place of the lesion. The same arguments always
            give the same arrays.
        contrast: ``t1``, ``t2`` or ``flair``.
        skull: Draw skull and scalp too, and noise in the air around them.
        lesion_radius_mm: Plant one lesion of about this radius in the white matter. Outside the
            lesion and its soft edge the image is the one without a lesion.

    Returns:
        The phantom, in RAS orientation with the world's origin in the middle of the grid.

    Raises:
        InputError: If the shape, spacing, contrast or radius makes no sense.
    """
    spacing = _checked(shape, spacing_mm, contrast, lesion_radius_mm)
    affine = np.diag([*spacing, *[spacing[0]] * (4 - len(spacing))])
    affine[3, 3] = 1
    affine[: len(shape), 3] = [
        -size_mm * (n - 1) / 2 for n, size_mm in zip(shape, spacing, strict=True)
    ]
    axes = [
        np.arange(n) * size_mm - size_mm * (n - 1) / 2
        for n, size_mm in zip(shape, spacing, strict=True)
    ]
    axes += [np.zeros(1)] * (3 - len(axes))  # a slice is a volume one voxel thick, at z = 0

    half_mm = [n * size_mm / 2 for n, size_mm in zip(shape, spacing, strict=True)]
    around_mm = SKULL_AND_SCALP_MM if skull else 0.0
    scale = min(
        1.0,
        *[0.94 * h / (a + around_mm) for h, a in zip(half_mm, BRAIN_SEMI_AXES_MM, strict=False)],
    )
    labels, depth_mm = _anatomy(axes, scale, seed, skull)
    image = _tissue(labels, axes, contrast, seed)
    lesion = np.zeros(labels.shape, dtype=bool)
    if lesion_radius_mm is not None:
        opacity = _lesion(labels, depth_mm, axes, lesion_radius_mm, seed)
        lesion = opacity >= 0.5
        image += opacity * (BRIGHTNESS[contrast][LESION] - image)
    image = _acquire(image, axes, seed)
    in_brain = (labels > 0) & (labels < 500)
    if not skull:
        image[~in_brain] = 0

    full = tuple(int(n) for n in shape)
    provenance = Provenance(modality="MR", details={"synthetic": f"phantom, seed {seed}"})
    return Phantom(
        image=Volume.from_array(image.reshape(full), affine, provenance),
        labels=labels.reshape(full),
        lesion=lesion.reshape(full),
        brain=in_brain.reshape(full),
    )


def _checked(
    shape: Sequence[int],
    spacing_mm: float | Sequence[float],
    contrast: str,
    lesion_radius_mm: float | None,
) -> tuple[float, ...]:
    """One voxel size per axis, or an InputError."""
    if len(shape) not in (2, 3) or min(shape) < 8:
        msg = f"a phantom needs 2 or 3 sizes of at least 8 voxels, got {tuple(shape)}"
        raise InputError(msg)
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (len(shape),))
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        msg = f"spacing_mm must be positive, got {spacing_mm}"
        raise InputError(msg)
    if contrast not in BRIGHTNESS:
        msg = f"contrast must be one of {', '.join(BRIGHTNESS)}, got {contrast!r}"
        raise InputError(msg)
    if lesion_radius_mm is not None and not 0 < lesion_radius_mm <= 40:
        msg = f"lesion_radius_mm must lie between 0 and 40, got {lesion_radius_mm}"
        raise InputError(msg)
    return tuple(float(size) for size in spacing)


def _anatomy(axes: Axes, scale: float, seed: int, skull: bool) -> tuple[NDArray[np.int16], Field]:
    """Labels ``(X, Y, Z)`` and the depth below the brain's surface in mm (negative outside)."""
    rng = np.random.default_rng([seed, 0])
    size = scale * rng.uniform(0.96, 1.0, 3)  # nobody is the average
    x, y, z = (
        (axis + _waves(axes, 80.0 * scale, rng, count=12) * 1.2 * scale) / factor
        for axis, factor in zip(np.meshgrid(*axes, indexing="ij", sparse=True), size, strict=True)
    )
    depth = _depth(x, y, z, (0, 0, 0), BRAIN_SEMI_AXES_MM) * scale

    # Sulci: sheets where a wave field changes sign, widest at the surface and gone 20 mm below it.
    wavelength = 24.0 * scale
    wave = _waves(axes, wavelength, rng, count=64)
    to_sheet = np.abs(wave) * (wavelength / (2 * np.pi))
    reach = np.clip(1 - depth / (20.0 * scale), 0, 1)
    # The fissure between the hemispheres stops at the corpus callosum.
    callosum = _depth(x, y, z, (0, -4, 2), (40, 44, 26))
    to_fissure = np.where(callosum < 0, np.abs(x) * scale, np.inf)
    sulcus = (to_sheet < 1.6 * reach) | (to_fissure < 1.0) | (depth < 1.5 * scale)
    to_fluid = np.minimum(np.where(reach > 0.05, to_sheet, np.inf), np.minimum(depth, to_fissure))

    labels = np.full(depth.shape, WHITE_MATTER, dtype=np.int16)
    labels[to_fluid < 3.2 * scale] = CORTEX
    labels[sulcus] = CSF
    side = np.abs(x)
    deep_grey = np.maximum(
        _depth(side, y, z, (13, -16, -2), (9, 14, 9)),  # thalamus
        _depth(side, y - 0.25 * side, z, (25, -2, 2), (6, 18, 11)),  # putamen
    )
    labels[deep_grey > 0] = DEEP_GREY
    labels[_depth(side, y, z - 0.15 * y, (9, 2, 14), (6, 30, 8)) > 0] = VENTRICLE
    labels[depth <= 0] = BACKGROUND
    if skull:
        labels[(depth <= 0) & (depth > -6.0 * scale)] = SKULL
        labels[(depth <= -6.0 * scale) & (depth > -11.0 * scale)] = SCALP
    return labels, depth


def _tissue(labels: NDArray[np.int16], axes: Axes, contrast: str, seed: int) -> Field:
    """Brightness 0..1 of each voxel, with partial volume at the borders and a faint texture."""
    rng = np.random.default_rng([seed, 1])
    image = np.zeros(labels.shape, dtype=np.float32)
    for label, brightness in BRIGHTNESS[contrast].items():
        image[labels == label] = brightness * rng.uniform(0.97, 1.03)
    sigma = [0.5 if n > 1 else 0.0 for n in labels.shape]
    image = ndimage.gaussian_filter(image, sigma)
    image *= 1 + 0.02 * _waves(axes, 18.0, rng, count=32)
    return image


def _lesion(
    labels: NDArray[np.int16],
    depth_mm: Field,
    axes: Axes,
    radius_mm: float,
    seed: int,
) -> Field:
    """Opacity 0..1 of an irregular blob in the white matter, soft over about 2 mm."""
    rng = np.random.default_rng([seed, 2])
    white = np.argwhere(labels == WHITE_MATTER)
    if not len(white):
        msg = f"the grid {labels.shape} is too coarse to hold any white matter for a lesion"
        raise InputError(msg, "Use more or smaller voxels.")
    # Among some random places take the deepest, so that a large lesion fits.
    places = white[rng.integers(len(white), size=5)]
    centre = places[np.argmax(depth_mm[tuple(places.T)])]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    squared = sum(
        (line - axis[index]) ** 2 for line, axis, index in zip(grid, axes, centre, strict=True)
    )
    ragged = 0.12 * radius_mm * _waves(axes, 2.5 * radius_mm, rng, count=24)
    opacity = np.clip((radius_mm - np.sqrt(squared) + ragged) / 2.0 + 0.5, 0, 1)
    opacity[~np.isin(labels, (WHITE_MATTER, CORTEX, DEEP_GREY))] = 0
    opacity[tuple(centre)] = 1  # even a lesion smaller than a voxel leaves one
    return opacity.astype(np.float32)


def _acquire(image: Field, axes: Axes, seed: int) -> Field:
    """What a scanner makes of it: receive-coil shading and Rician noise, in scanner units."""
    rng = np.random.default_rng([seed, 3])
    shaded = image * np.exp(0.06 * _waves(axes, 220.0, rng, count=8))
    real, imaginary = rng.normal(0, NOISE, (2, *image.shape)).astype(np.float32)
    return (BRIGHTEST * np.hypot(shaded + real, imaginary)).astype(np.float32)


def _depth(
    x: Field,
    y: Field,
    z: Field,
    centre: tuple[float, float, float],
    semi_axes: tuple[float, float, float],
) -> Field:
    """About how many mm a point lies below the surface of an ellipsoid (negative outside)."""
    radius = sum(((p - c) / a) ** 2 for p, c, a in zip((x, y, z), centre, semi_axes, strict=True))
    return (1 - np.sqrt(radius)) * (np.prod(semi_axes) ** (1 / 3))


def _waves(axes: Axes, wavelength_mm: float, rng: np.random.Generator, count: int) -> Field:
    """Smooth random field ``(X, Y, Z)``, mean about 0 and variance about 1.

    The sum of ``count`` plane waves in random directions. A plane wave is a product of one factor
    per axis, so the sum over waves is a matrix product and costs next to nothing.
    """
    direction = rng.normal(size=(3, count))
    direction *= 2 * np.pi / wavelength_mm / np.linalg.norm(direction, axis=0)
    phase = rng.uniform(0, 2 * np.pi, count)
    along_x, along_y, along_z = (
        np.exp(1j * np.outer(axis, wave)).astype(np.complex64)
        for axis, wave in zip(axes, direction, strict=True)
    )
    plane = along_x[:, None, :] * along_y[None, :, :] * np.exp(1j * phase).astype(np.complex64)
    field = np.real(plane @ along_z.T)
    return (np.sqrt(2 / count) * field).astype(np.float32)
