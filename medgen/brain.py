"""Where the brain is: foreground, skull-stripped scans recognised, brains extracted from heads.

The extraction is classical and does not care about the contrast of the scan:

1. An atlas of eight tissue classes (`medgen/data/head_atlas.md`) is aligned to the head by an
   affine map that maximises the mutual information between tissue class and intensity, from
   several starts (the criterion of Viola and Wells 1997, with classes on one side).
2. Expectation maximisation labels every voxel near the brain: the aligned atlas is the prior,
   the intensity distribution of each class is learned from the scan itself, and neighbours vote
   (as in unified segmentation, Ashburner and Friston 2005, with histograms for the intensities).
3. Brain tissue and ventricles are cut free from thin bridges to the neck and eyes, and closed
   over the sulci.

Everything is deterministic. An implausible result is an error, never a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.resampling import resample
from medgen.volume import Geometry, Volume

# A scan counts as having a constant background if at least this part of it is one exact value.
LEAST_BACKGROUND = 0.02
# The largest brains with all fluid around them stay below (the ICBM 152 template has 1.9 l in its
# own space), the smallest adult heads above.
LARGEST_BRAIN_ML = 2250.0
# A brain ends inside the field of view; a head's neck is cut by it.
LARGEST_CUT = 0.1

# Order of the atlas's classes; those from BRAIN on are brain.
CLASSES = ("air", "bone", "marrow", "soft", "fluid", "grey", "white", "ventricle")
BRAIN = 5
ALIGN_MM = 4.0
SEGMENT_MM = 2.0
# Rotations, scales and shears become displacements in mm at this distance from the atlas's
# centre, so that one optimiser step means the same in every parameter.
RADIUS_MM = 80.0
# Energy of 100 % strain, against information in hundredths of a nat: a head 10 % larger than the
# atlas along one axis must gain 0.1 of them.
STIFFNESS = 10.0
# Measured on heads and on what is none; see benchmarks/results/brain_extraction.md.
LEAST_INFORMATION = 0.2
PLAUSIBLE_ML = (600.0, 2000.0)
LEAST_OVERLAP = 0.75


@dataclass(frozen=True, eq=False)
class Atlas:
    """How often each tissue class is found around an average brain.

    Attributes:
        priors: ``(8, X, Y, Z)`` float32 probabilities in the order of `CLASSES`.
        geometry: Their grid in mm, axes to the right, front and head, near the brain's centre.
    """

    priors: NDArray[np.float32]
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class Extraction:
    """A brain found in a head.

    Attributes:
        mask: ``(X, Y, Z)`` bool on the scan's grid: brain, ventricles and the fluid in the sulci.
        information: Mutual information of tissue class and intensity after alignment, in nats.
        overlap: Dice overlap of the mask with the brain of the aligned atlas.
        volume_ml: Volume of the mask.
    """

    mask: NDArray[np.bool_]
    information: float
    overlap: float
    volume_ml: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found, for people."""
        return (
            f"head with skull: brain extracted ({self.volume_ml:.0f} ml; overlap with the "
            f"aligned atlas {self.overlap:.2f}, mutual information {self.information:.2f})",
        )


def find_foreground(volume: Volume) -> tuple[NDArray[np.bool_], float | None]:
    """Everything that is not the constant background, with holes filled.

    Args:
        volume: ``(C, X, Y[, Z])``.

    Returns:
        The foreground ``(X, Y[, Z])`` and the background's part of the scan (0..1); when there
        is no constant background, everything and None.
    """
    foreground = np.zeros(volume.geometry.shape, dtype=bool)
    for channel in volume.voxels:
        values = channel.astype(np.float32, copy=False)
        # Interpolation after skull stripping leaves traces around the brain: below 1/500 of the
        # range they are still background.
        foreground |= np.abs(values - _rim_value(values)) > 0.002 * float(np.ptp(values))
    background = 1.0 - float(foreground.mean())
    if background < LEAST_BACKGROUND or not foreground.any():
        return np.ones_like(foreground), None
    return _fill_holes(_without_specks(foreground)), background


def why_skull_stripped(foreground: NDArray[np.bool_], geometry: Geometry) -> str | None:
    """Why a foreground is a brain without its skull, or None if it is not.

    Args:
        foreground: ``(X, Y, Z)``, holes filled.
        geometry: Its grid.

    Returns:
        The reason in words: its volume is a brain's, and the field of view does not cut it.
    """
    volume_ml = float(foreground.sum()) * geometry.voxel_volume_mm3 / 1000
    faces = [np.take(foreground, end, axis=axis) for axis in range(3) for end in (0, -1)]
    cut = max(float(face.mean()) for face in faces)
    if volume_ml > LARGEST_BRAIN_ML or cut > LARGEST_CUT:
        return None
    return f"{volume_ml:.0f} ml, inside the field of view"


def extract_brain(volume: Volume, atlas: Atlas | None = None) -> Extraction:
    """Find the brain in a head with skull.

    Args:
        volume: ``(C, X, Y, Z)``; the first channel is used. Its affine must tell the truth about
            up and front within about 40 degrees: a head upside down may pass as a worse brain.
        atlas: Replaces the atlas that ships with medgen.

    Returns:
        The mask and how far to trust it.

    Raises:
        InputError: If the scan is not 3-D or the result is not plausibly a brain.
    """
    if volume.spatial_dims != 3:
        raise InputError("a brain can only be extracted from a 3-D scan, got a 2-D image")
    atlas = atlas or load_atlas()
    low, high = np.percentile(volume.voxels[0], [0.5, 99.5])
    if not high > low:
        raise _not_found("almost all voxels have one value")
    image = ((volume.voxels[0] - low) / (high - low)).clip(0, 1).astype(np.float32)

    matrix, information = _align(image, volume.geometry, atlas)
    if information < LEAST_INFORMATION:
        raise _not_found(
            f"no head could be aligned to the atlas (mutual information {information:.2f}, "
            f"at least {LEAST_INFORMATION} expected)"
        )
    placed = Geometry(atlas.geometry.shape, matrix @ atlas.geometry.affine)
    work = _box_around(atlas.priors[BRAIN:].sum(axis=0) > 0.25, placed, 30.0, SEGMENT_MM)
    priors = np.stack([resample(prior, placed, work) for prior in atlas.priors])
    priors[0] += 1 - priors.sum(axis=0)
    seen = resample(np.ones_like(image), volume.geometry, work) > 0.5
    brain = _segment(resample(image, volume.geometry, work), priors, seen)
    found = _clean(brain, SEGMENT_MM)

    mask = resample(found.astype(np.float32), work, volume.geometry) > 0.5
    volume_ml = float(mask.sum()) * volume.geometry.voxel_volume_mm3 / 1000
    expected = seen & (priors[BRAIN - 1 :].sum(axis=0) > 0.5)
    overlap = float(2 * (found & expected).sum() / max(1, found.sum() + expected.sum()))
    if not PLAUSIBLE_ML[0] <= volume_ml <= PLAUSIBLE_ML[1] or overlap < LEAST_OVERLAP:
        raise _not_found(
            f"what was found has {volume_ml:.0f} ml ({PLAUSIBLE_ML[0]:.0f} to "
            f"{PLAUSIBLE_ML[1]:.0f} expected) and overlaps the atlas by {overlap:.2f} (at least "
            f"{LEAST_OVERLAP} expected)"
        )
    return Extraction(mask, information, overlap, volume_ml)


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The atlas that ships with medgen."""
    with np.load(Path(__file__).parent / "data" / "head_atlas.npz", allow_pickle=False) as file:
        return unpack_atlas(file["priors"], file["affine"])


def unpack_atlas(packed: NDArray[np.uint8], affine: NDArray[np.float64]) -> Atlas:
    """An atlas from its stored form: all classes but air, ``(7, X, Y, Z)``, 31 for certainty."""
    tissue = packed.astype(np.float32) / 31
    air = np.clip(1 - tissue.sum(axis=0, keepdims=True), 0, 1)
    priors = np.concatenate([air, tissue])
    priors /= priors.sum(axis=0)
    return Atlas(priors, Geometry(packed.shape[1:], affine))


class _Information:
    """Mutual information of tissue class and intensity, and its gradient, for an affine map.

    The joint histogram adds, for every atlas voxel, its class probabilities to the two
    intensity bins next to the value that the image has there.
    """

    BINS = 32

    def __init__(
        self, image: NDArray[np.float32], geometry: Geometry, atlas: Atlas, step: int
    ) -> None:
        from scipy import ndimage

        near_head = ndimage.gaussian_filter(1 - atlas.priors[0], 1.0) > 0.03
        chosen = np.zeros_like(near_head)
        chosen[::step, ::step, ::step] = near_head[::step, ::step, ::step]
        self.points = atlas.geometry.to_world(np.argwhere(chosen))
        self.classes = atlas.priors[:, chosen].astype(np.float64)
        self.brain = self.classes[BRAIN:].sum(axis=0)
        self.image = image
        self.slopes = np.gradient(image)
        self.to_voxel = np.linalg.inv(geometry.affine)

    def value(self, matrix: NDArray[np.float64]) -> float:
        """Information in nats; 0 if less than half the brain is in the field of view."""
        joint, *_ = self._joint(matrix)
        return 0.0 if joint is None else float((joint * self._surprise(joint)).sum())

    def loss(self, parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Minus 100 x information plus the strain's energy, and the gradient of their sum."""
        from scipy import ndimage

        matrix = to_matrix(parameters)
        joint, bins, voxels, inside = self._joint(matrix)
        if joint is None:
            return 0.0, np.zeros(12)
        surprise = self._surprise(joint)
        classes = self.classes[:, inside]
        by_value = (classes * np.diff(surprise, axis=1)[:, bins]).sum(axis=0)
        by_value *= (self.BINS - 1) / len(bins)
        by_voxel = np.stack([ndimage.map_coordinates(s, voxels, order=1) for s in self.slopes])
        by_world = self.to_voxel[:3, :3].T @ (by_voxel * by_value)
        by_matrix = by_world @ self.points[inside] / RADIUS_MM
        gradient = -100 * np.concatenate([by_world.sum(axis=1), by_matrix.ravel()])
        # Where the field of view cuts the head, stretching would push misfits out of sight.
        linear = matrix[:3, :3]
        strain = (linear.T @ linear - np.eye(3)) / 2
        gradient[3:] += 2 * STIFFNESS * (linear @ strain).ravel() / RADIUS_MM
        energy = STIFFNESS * float((strain**2).sum())
        return energy - 100 * float((joint * surprise).sum()), gradient

    def _joint(self, matrix: NDArray[np.float64]) -> tuple[Any, Any, Any, Any]:
        """Joint histogram (8, bins), lower bin of each point, its voxel, and which are inside."""
        from scipy import ndimage

        affine = self.to_voxel @ matrix
        voxels = (self.points @ affine[:3, :3].T + affine[:3, 3]).T
        last = np.array(self.image.shape)[:, None] - 1
        inside = ((voxels >= 0) & (voxels <= last)).all(axis=0)
        if self.brain[inside].sum() < 0.5 * self.brain.sum():
            return None, None, None, None
        voxels = voxels[:, inside]
        values = ndimage.map_coordinates(self.image, voxels, order=1) * (self.BINS - 1)
        bins = np.minimum(values.astype(int), self.BINS - 2)
        upper = values - bins
        joint = _histograms(self.classes[:, inside], bins, upper, self.BINS)
        joint = ndimage.gaussian_filter1d(joint / len(bins) + 1e-7, 0.7, axis=1)
        return joint, bins, voxels, inside

    @staticmethod
    def _surprise(joint: NDArray[np.float64]) -> NDArray[np.float64]:
        product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        return np.log(joint / product)


def to_matrix(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """4x4 affine of 12 parameters in mm: three shifts, then the rows of the linear part."""
    matrix = np.eye(4)
    matrix[:3, 3] = parameters[:3]
    matrix[:3, :3] += parameters[3:].reshape(3, 3) / RADIUS_MM
    return matrix


def _align(
    image: NDArray[np.float32], geometry: Geometry, atlas: Atlas
) -> tuple[NDArray[np.float64], float]:
    """The affine map from the atlas to the world, and the information it reaches (nats)."""
    from scipy import ndimage
    from scipy.optimize import minimize

    grid = _box_around(np.ones(geometry.shape, dtype=bool), geometry, 0.0, ALIGN_MM)
    fine = resample(image, geometry, grid)
    coarse = ndimage.gaussian_filter(fine, 1.0)

    def climb(target: _Information, start: NDArray[np.float64], steps: int) -> tuple[float, Any]:
        first = np.concatenate([start[:3, 3], ((start[:3, :3] - np.eye(3)) * RADIUS_MM).ravel()])
        options = {"maxiter": steps}
        end = minimize(target.loss, first, jac=True, method="L-BFGS-B", options=options)
        return float(end.fun), to_matrix(end.x)

    quick = _Information(coarse, grid, atlas, step=2)
    starts = sorted(_starts(fine, grid, atlas), key=quick.value, reverse=True)
    chosen = [starts[0]]
    for start in starts[1:]:
        if len(chosen) < 4 and all(np.abs(start - other).max() > 7 for other in chosen):
            chosen.append(start)
    best = min((climb(quick, start, 40) for start in chosen), key=lambda end: end[0])[1]
    full = _Information(fine, grid, atlas, step=1)
    matrix = climb(full, best, 40)[1]
    return matrix, full.value(matrix)


def _starts(image: NDArray[np.float32], grid: Geometry, atlas: Atlas) -> list[NDArray[np.float64]]:
    """First guesses: the atlas's head put on the scan's, nodding, larger and smaller, shifted.

    Only the upper 130 mm of the heads are compared; necks differ in length.
    """
    head = grid.to_world(np.argwhere(_head(image)))
    average = atlas.geometry.to_world(np.argwhere(atlas.priors[0] < 0.5))
    top, centre, extent = _upper_part(head)
    starts = []
    for nod in np.deg2rad([-30, -20, -10, 0, 10, 20, 30]):
        cos, sin = np.cos(nod), np.sin(nod)
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        own_top, own_centre, own_extent = _upper_part(average @ turn.T)
        ratio = extent / own_extent
        for size in (0.92, 1.0, 1.08):
            scale = np.array([*ratio, ratio.mean()]).clip(0.75, 1.3) * size
            for up in (-16, -8, 0, 8):
                for forward in (-8, 0, 8):
                    matrix = np.eye(4)
                    matrix[:3, :3] = np.diag(scale) @ turn
                    matrix[:2, 3] = centre - scale[:2] * own_centre + (0, forward)
                    matrix[2, 3] = top - scale[2] * own_top + up
                    starts.append(matrix)
    return starts


def _upper_part(points: NDArray[np.float64]) -> tuple[float, Any, Any]:
    """Top (z), centre (x, y) and extent (x, y) in mm of the upper 130 mm of points ``(N, 3)``."""
    top = float(np.percentile(points[:, 2], 99.9))
    upper = points[points[:, 2] > top - 130, :2]
    low, high = np.percentile(upper, [1, 99], axis=0)
    return top, upper.mean(axis=0), high - low


def _head(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest part brighter than half of Otsu's threshold."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    bright = ndimage.binary_opening(image > 0.5 * threshold_otsu(image))
    if not bright.any():
        raise _not_found("nothing in the scan is large and bright enough to be a head")
    return _largest(bright)


def _segment(
    image: NDArray[np.float32], priors: NDArray[np.float32], seen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Voxels that are more likely brain tissue or ventricle than anything else.

    Args:
        image: ``(X, Y, Z)``, 0..1.
        priors: ``(8, X, Y, Z)`` probabilities.
        seen: ``(X, Y, Z)``, inside the field of view.

    Returns:
        ``(X, Y, Z)`` bool.
    """
    from scipy import ndimage

    # No affine fits every head: the prior is uncertain by a few millimetres.
    priors = np.stack([ndimage.gaussian_filter(prior, 1.5, truncate=2.0) for prior in priors])
    inside_skull = priors[BRAIN - 1 :].sum(axis=0)
    # Skull and scalp take part: where they are certain, they show what they look like.
    near = seen & (priors[0] < 0.98)
    prior = np.maximum(priors[:, near], 1e-3)
    prior[BRAIN:, inside_skull[near] < 0.2] = 1e-9
    prior /= prior.sum(axis=0)
    levels = 64
    values = image[near].clip(0, 1) * (levels - 1)
    bins = np.minimum(values.astype(int), levels - 2)
    upper = values - bins
    votes = np.zeros_like(priors)
    posterior = prior
    for iteration in range(8):
        chance = ndimage.gaussian_filter1d(_histograms(posterior, bins, upper, levels), 1.5, axis=1)
        # The floor keeps values that a class has not shown yet from ruling it out.
        chance = (chance / chance.sum(axis=1, keepdims=True) + 1e-4).astype(np.float32)
        updated = prior * (chance[:, bins] * (1 - upper) + chance[:, bins + 1] * upper)
        if iteration >= 2:
            votes[:, near] = updated / updated.sum(axis=0)
            vote = np.stack([ndimage.gaussian_filter(v, 1.0, truncate=2.0)[near] for v in votes])
            updated *= np.exp(4 * vote)
        posterior = updated / updated.sum(axis=0)
    # What cannot be bone or skin where it lies is brain that looks unusual, as lesions do.
    outside = posterior[: BRAIN - 1].sum(axis=0)
    lesion = (inside_skull[near] > 0.9) & (outside > 0.5)
    brain = np.zeros(image.shape, dtype=bool)
    brain[near] = (posterior[BRAIN:].sum(axis=0) > 0.5) | lesion
    return brain


def _clean(brain: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.bool_]:
    """One solid brain: bridges thinner than 6 mm cut, sulci up to 12 mm wide closed."""
    from scipy.ndimage import distance_transform_edt

    core = distance_transform_edt(brain) * spacing_mm > 3
    if not core.any():
        return core
    near_core = distance_transform_edt(~_largest(core)) * spacing_mm <= 5
    brain = np.pad(_largest(brain & near_core), 5)
    grown = distance_transform_edt(~brain) * spacing_mm <= 6
    closed = distance_transform_edt(grown) * spacing_mm > 6
    return _fill_holes(closed | brain)[5:-5, 5:-5, 5:-5]


def _histograms(
    weights: NDArray[Any], bins: NDArray[np.int64], upper: NDArray[Any], count: int
) -> NDArray[np.float64]:
    """Histogram ``(K, count)`` of values shared between bin and bin + 1, for K rows of weights."""
    rows = [
        np.bincount(bins, row * (1 - upper), count) + np.bincount(bins + 1, row * upper, count)
        for row in weights
    ]
    return np.stack(rows)


def _box_around(
    mask: NDArray[np.bool_], geometry: Geometry, margin_mm: float, spacing_mm: float
) -> Geometry:
    """The world-aligned isotropic grid that contains the bounding box of a mask."""
    voxels = np.argwhere(mask)
    box = np.array([voxels.min(axis=0), voxels.max(axis=0)])
    corners = geometry.to_world(np.stack(np.meshgrid(*box.T), axis=-1).reshape(-1, 3))
    low, high = corners.min(axis=0) - margin_mm, corners.max(axis=0) + margin_mm
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = low
    return Geometry(tuple(np.ceil((high - low) / spacing_mm).astype(int) + 1), affine)


def _rim_value(channel: NDArray[Any]) -> float:
    """The most frequent value on the outer faces of ``(X, Y[, Z])``."""
    faces = [np.take(channel, (0, -1), axis=axis).ravel() for axis in range(channel.ndim)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()])


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Connected parts, numbered from 1, and the voxels of each (0 for the background)."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return parts, sizes


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask that is not empty."""
    parts, sizes = _parts(mask)
    return parts == sizes.argmax()


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Only connected parts of at least 2 % of the largest one."""
    parts, sizes = _parts(mask)
    return (sizes >= 0.02 * sizes.max())[parts] & mask


def _fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and everything it encloses (background that does not touch the border)."""
    from scipy import ndimage

    # One pass of labelling is many times faster than scipy's binary_fill_holes on a volume.
    parts, _ = ndimage.label(~np.pad(mask, 1))
    return (parts != parts.flat[0])[(slice(1, -1),) * mask.ndim]


def _not_found(why: str) -> InputError:
    hint = (
        "Check that the scan shows a whole head and that the orientation in its header is right. "
        "Whether a head, a skull-stripped brain or neither is expected, `brain` says in the "
        "preparation of the model's package (auto, head, skull_stripped, none)."
    )
    return InputError(f"no brain was found: {why}", hint)
