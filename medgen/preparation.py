"""From a scan as it comes to the image a model expects, and back to the scan's own grid.

A `Preparation` is a description that is saved with a model, so that training and use cannot
differ. `Preparation.apply` finds the foreground (the brain), chooses a target grid around it,
resamples once and normalises intensities. `Prepared` remembers both grids, so results return to
the voxels of the scan by the inverse of the same affine map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medgen import brain
from medgen.config import Config
from medgen.errors import InputError
from medgen.resampling import resample
from medgen.volume import Geometry, Volume

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

# Fewer voxels than this along an axis of the target grid leave nothing to look at.
FEWEST_VOXELS = 8
# Voxel axes and sizes closer than this (relative) need no resampling.
ALIGNED = 1e-3
# A prepared voxel is left out if ignored voxels of the scan have at least this part in it.
LEAST_IGNORED = 0.02


class Preparation(Config):
    """How a scan becomes the input of a model."""

    orientation: Literal["RAS"] = Field("RAS", description="Direction of the prepared axes.")
    spacing_mm: float | None = Field(
        1.5, gt=0, description="Isotropic voxel size in mm; null keeps the scan's own voxels."
    )
    longest_side: int | None = Field(
        None,
        ge=FEWEST_VOXELS,
        description="Pixels of a 2-D image's longer side, whatever its pixel size, which pictures "
        "do not know; null: 2-D images follow spacing_mm too.",
    )
    brain: Literal["auto", "skull_stripped", "head", "none"] = Field(
        "auto",
        description="What a 3-D scan shows: a skull-stripped brain, a head whose brain must be "
        "extracted, or neither. 2-D images are never extracted: their foreground is used.",
    )
    bias_correction: bool = Field(False, description="Remove slow shading with N4.")
    margin_mm: float = Field(6.0, ge=0, description="Room kept around the mask in mm.")
    normalisation: Literal["percentile", "equalise", "eight_bits"] = Field(
        "percentile",
        description="percentile: lower..upper become 0..1, clipped to 0..brightest; equalise: the "
        "rank of each value inside the mask, 0..1; eight_bits: 0..255 become 0..1, for pictures "
        "whose brightness and colours mean something; of DICOM the window of its header, or else "
        "all its values.",
    )
    lower: float = Field(
        1.0, ge=0, le=100, description="Percentile inside the mask that becomes 0."
    )
    upper: float = Field(
        99.0, ge=0, le=100, description="Percentile inside the mask that becomes 1."
    )

    brightest: float | None = Field(
        1.5,
        gt=1,
        description="Largest value of a normalised image, whose least is 0; null: nothing is "
        "clipped, so that results can be scaled back to the scan's own values.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Preparation:
        if self.lower >= self.upper:
            msg = f"lower ({self.lower}) must be below upper ({self.upper})"
            raise ValueError(msg)
        return self

    def apply(
        self,
        volume: Volume,
        brain_mask: NDArray[Any] | None = None,
        ignore: NDArray[np.bool_] | None = None,
    ) -> Prepared:
        """Prepare a scan.

        Args:
            volume: ``(C, X, Y, Z)`` or ``(C, X, Y)``.
            brain_mask: ``(X, Y, Z)`` or ``(X, Y)``, nonzero inside the brain; found when absent.
            ignore: ``(X, Y[, Z])``, true where the values mean nothing. They count neither for the
                percentiles nor in interpolation, and are 0 in the prepared image.

        Returns:
            The prepared image, its mask, and the way back.

        Raises:
            InputError: If values are not finite or constant, the mask is empty or misshapen, the
                scan is too small, no brain can be found, or nothing is left beside what is ignored.
        """
        import torch
        from monai.data import MetaTensor

        voxels = checked_voxels(volume)
        mask, notes = self._mask(_without(volume, ignore), brain_mask)
        if ignore is not None:
            mask |= ignore
        spacing_mm = self._spacing(volume.geometry)
        grid = target_grid(volume.geometry, mask, spacing_mm, self.margin_mm)
        known = mask if ignore is None else _beside(mask, ignore)
        image, inside = _resample_inside(voxels, known, volume.geometry, grid)
        ignored = None
        if ignore is not None:
            ignored = _ignored(ignore, volume.geometry, grid)
            inside &= ~ignored
            image[:, ignored] = 0
        shown, note = (0.0, 255.0), None
        if self.normalisation == "eight_bits":
            shown, note = _shown(volume)
        notes += [note] if note else []
        ranges = []
        for channel in image:
            if self.bias_correction:
                _correct_bias(channel, inside)
            ranges.append(_normalise(channel, inside, self, shown))
        if self.bias_correction:
            notes.append("shading removed with N4")
        whole = inside if ignored is None else inside | ignored
        return Prepared(
            image=MetaTensor(torch.from_numpy(image), affine=torch.from_numpy(grid.affine.copy())),
            mask=torch.from_numpy(whole[None]),
            grid=grid,
            source=volume.geometry,
            source_mask=mask,
            notes=tuple(notes),
            ranges=tuple(ranges),
            ignored=None if ignored is None else torch.from_numpy(ignored[None]),
        )

    def _spacing(self, source: Geometry) -> float | None:
        """Voxel size in mm to work at, or None for the scan's own."""
        if self.longest_side is None or source.spatial_dims == 3:
            return self.spacing_mm
        return float(np.max(np.multiply(source.shape, source.spacing_mm))) / self.longest_side

    def _mask(
        self, volume: Volume, given: NDArray[Any] | None
    ) -> tuple[NDArray[np.bool_], list[str]]:
        """The region to look at on the scan's grid, and how it was found."""
        if given is not None:
            mask = np.asarray(given) != 0
            if mask.shape != volume.geometry.shape or not mask.any():
                msg = (
                    f"the brain mask must have the scan's shape {volume.geometry.shape} and some "
                    f"nonzero voxels, got shape {mask.shape} with {int(mask.sum())} nonzero"
                )
                raise InputError(msg)
            return mask, ["brain mask given by the caller"]
        foreground, background = brain.find_foreground(volume)
        if volume.spatial_dims == 2 or self.brain == "none":
            if background is None:
                return foreground, ["the whole image is used: it has no constant background"]
            return foreground, [f"the constant background ({background:.0%}) is left out"]
        if self.brain == "skull_stripped":
            if background is None:
                msg = "the scan is said to be skull-stripped but has no constant background"
                raise InputError(msg, "Use brain: head or brain: auto.")
            return foreground, [f"skull-stripped as configured ({background:.0%} background)"]
        if self.brain == "auto" and background is not None:
            reason = brain.why_skull_stripped(foreground, volume.geometry)
            if reason:
                note = f"skull-stripped scan recognised ({background:.0%} background; {reason})"
                return foreground, [note]
        extraction = brain.extract_brain(volume)
        return extraction.mask, list(extraction.notes)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared scan and the way back.

    Attributes:
        image: ``(C, X, Y[, Z])`` float32, 0 outside the mask; inside 0..1.5, or without bounds.
        mask: ``(1, X, Y[, Z])`` bool.
        grid: The prepared grid.
        source: The scan's grid.
        source_mask: The mask on the scan's grid, ``(*source.shape)`` bool.
        notes: What was found and done, for people.
        ranges: The values of the scan that became 0 and 1, for each channel; for ``equalise``,
            which has no such pair, the least and the largest value.
        ignored: ``(1, X, Y[, Z])`` bool, what was ignored, as part of the mask; None if nothing.
    """

    image: MetaTensor
    mask: torch.Tensor
    grid: Geometry
    source: Geometry
    source_mask: NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    ignored: torch.Tensor | None = None

    def to_source(
        self, maps: torch.Tensor | NDArray[Any], mode: Literal["linear", "nearest"] = "linear"
    ) -> NDArray[np.float32]:
        """Maps ``(C, *grid.shape)`` on the scan's voxels ``(C, *source.shape)`` as float32.

        Args:
            maps: Values on the prepared grid.
            mode: ``linear`` for images and maps, ``nearest`` for masks and labels.

        Returns:
            Resampled values; 0 where the prepared grid does not reach.

        Raises:
            InputError: If the maps do not lie on the prepared grid.
        """
        values = np.asarray(maps, dtype=np.float32)
        if values.shape[1:] != self.grid.shape:
            msg = f"maps must have shape (C, *{self.grid.shape}), got {values.shape}"
            raise InputError(msg)
        return np.stack([resample(value, self.grid, self.source, mode) for value in values])


def target_grid(
    source: Geometry, mask: NDArray[np.bool_], spacing_mm: float | None, margin_mm: float
) -> Geometry:
    """The grid to work on: around the mask, axes to the right, front and head of the patient.

    A 3-D grid is aligned with the world and isotropic. It reuses the scan's own voxels (so that
    nothing is interpolated) if they have that size and direction already, or if `spacing_mm` is
    None. A 2-D grid stays in its plane and keeps its directions.

    Args:
        source: The scan's grid.
        mask: ``(*source.shape)``, not empty.
        spacing_mm: Voxel size in mm, or None for the scan's own.
        margin_mm: Room around the mask in mm.

    Returns:
        A grid that contains every voxel centre of the mask.

    Raises:
        InputError: If the mask is too small to be a scan worth looking at.
    """
    axes = _reoriented(source)
    wanted = axes[:, :3].copy()
    if spacing_mm is not None:
        lengths = np.linalg.norm(wanted, axis=0)
        world = np.eye(3) if source.spatial_dims == 3 else wanted / lengths
        wanted[:, : source.spatial_dims] = world[:, : source.spatial_dims] * spacing_mm
    own = axes[:, : source.spatial_dims]
    spacing = np.linalg.norm(wanted, axis=0)
    if np.abs(own - wanted[:, : source.spatial_dims]).max() <= ALIGNED * spacing.min():
        wanted[:, : source.spatial_dims] = own
        spacing = np.linalg.norm(wanted, axis=0)
        on_lattice = True
    else:
        on_lattice = False
    dims = source.spatial_dims
    corners = source.to_world(_extreme_voxels(mask))
    origin = axes[:, 3]
    steps = (corners - origin) @ np.linalg.inv(wanted).T
    low, high = steps[:, :dims].min(axis=0), steps[:, :dims].max(axis=0)
    if (high - low + 1).min() < FEWEST_VOXELS:
        found = " x ".join(f"{size:.1f}" for size in (high - low + 1) * spacing[:dims])
        msg = (
            f"the foreground measures {found} mm: at least {FEWEST_VOXELS} voxels of "
            f"{' x '.join(f'{size:.2f}' for size in spacing[:dims])} mm are needed along each axis"
        )
        hint = "Give the whole scan; give a single slice as a 2-D image."
        raise InputError(msg, hint)
    margin = margin_mm / spacing[:dims]
    if on_lattice:
        first = np.round(low) - np.ceil(margin - 1e-6)
        shape = np.round(high) + np.ceil(margin - 1e-6) - first + 1
    else:
        # Centred on the mask, so that a flipped copy of the scan gets the same grid.
        shape = np.ceil(high - low + 2 * margin - 1e-6) + 1
        first = (low + high) / 2 - (shape - 1) / 2
    affine = np.eye(4)
    affine[:3, :3] = wanted
    affine[:3, 3] = origin + wanted[:, :dims] @ first
    return Geometry(tuple(int(size) for size in shape), affine)


def checked_voxels(volume: Volume) -> NDArray[np.float32]:
    """The voxels as float32, or an error that says what is wrong with them."""
    voxels = volume.voxels
    if np.issubdtype(voxels.dtype, np.complexfloating):
        msg = "voxels must be real numbers, got complex ones"
        raise InputError(msg, "Take the magnitude first.")
    voxels = voxels.astype(np.float32, copy=False)
    wrong = voxels.size - int(np.isfinite(voxels).sum())
    if wrong:
        msg = f"{wrong} of {voxels.size} voxels are NaN or infinite; all must be finite"
        raise InputError(msg, "Repair the scan, for example by setting such voxels to 0.")
    for index, channel in enumerate(voxels):
        if channel.min() == channel.max():
            msg = (
                f"every voxel of channel {index} has the value {channel.flat[0]:g}: nothing to see"
            )
            raise InputError(msg, "Check that this is the right file and frame.")
    return voxels


def _extreme_voxels(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First and last voxel of the mask in every column: ``(N, dims)``.

    A linear function takes its extremes over the mask there, at a fraction of the points.
    """
    columns = np.argwhere(mask.any(axis=-1))
    lines = mask[tuple(columns.T)]
    first = lines.argmax(axis=1)
    last = mask.shape[-1] - 1 - lines[:, ::-1].argmax(axis=1)
    return np.concatenate([np.column_stack([columns, first]), np.column_stack([columns, last])])


def _reoriented(source: Geometry) -> NDArray[np.float64]:
    """``(3, 4)`` affine of the same lattice with axes permuted and flipped towards R, A, S.

    The third column of a 2-D grid, its plane's normal, is kept.
    """
    dims = source.spatial_dims
    directions = source.affine[:3, :dims] / np.array(source.spacing_mm)
    worlds = ["RAS".index({"L": "R", "P": "A", "I": "S"}.get(c, c)) for c in source.axis_codes]
    order = np.argsort(worlds)
    axes = source.affine[:3].copy()
    for place, axis in enumerate(order):
        column = source.affine[:3, axis]
        axes[:, place] = column
        if directions[worlds[axis], axis] < 0:
            axes[:, place] = -column
            axes[:, 3] += column * (source.shape[axis] - 1)
    return axes


def _resample_inside(
    voxels: NDArray[np.float32], mask: NDArray[np.bool_], source: Geometry, grid: Geometry
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Image ``(C, *grid.shape)`` and mask on the grid, mixing only voxels inside the mask.

    Dividing by the interpolated mask keeps the rim of the brain as bright as it is, whatever
    surrounds it (zeros or skull).
    """
    weight = resample(mask.astype(np.float32), source, grid)
    inside = weight > 0.5
    if not inside.any():
        msg = "nothing of the mask is left on the target grid"
        raise InputError(msg, "Check the mask and the voxel size in the header.")
    image = np.stack([resample(np.where(mask, channel, 0), source, grid) for channel in voxels])
    np.divide(image, weight, out=image, where=inside)
    image[:, ~inside] = 0
    return image, inside


def _without(volume: Volume, ignore: NDArray[np.bool_] | None) -> Volume:
    """The scan with values to ignore replaced by its darkest, so that they make no foreground."""
    if ignore is None or ignore.all():
        return volume
    voxels = volume.voxels.copy()
    for channel in voxels:
        channel[ignore] = channel.min(where=~ignore, initial=channel[~ignore][0])
    return volume.with_voxels(voxels)


def _beside(mask: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of the mask that is not ignored."""
    known = mask & ~ignore
    if known.sum() < FEWEST_VOXELS:
        msg = "nothing of the image is left beside the voxels to ignore"
        raise InputError(msg, "Check the mask: it covers the whole image or all its foreground.")
    return known


def _ignored(ignore: NDArray[np.bool_], source: Geometry, grid: Geometry) -> NDArray[np.bool_]:
    """The voxels of the grid in which ignored voxels of the scan have a part."""
    found = resample(ignore.astype(np.float32), source, grid) >= LEAST_IGNORED
    if not found.any():  # all smaller than a voxel: those that hold their centres
        voxels = np.round(grid.to_voxel(source.to_world(np.argwhere(ignore)))).astype(int)
        voxels = np.clip(voxels, 0, np.array(grid.shape) - 1)
        found[tuple(voxels.T)] = True
    return found


def _shown(volume: Volume) -> tuple[tuple[float, float], str | None]:
    """The values to be shown black and white, and how they were chosen if that is not plain.

    Raises:
        InputError: A picture holds more than 8 bits, and does not say what of them to show.
    """
    least, largest = float(volume.voxels.min()), float(volume.voxels.max())
    if volume.provenance.window is not None:
        low, high = volume.provenance.window
        return (low, high), f"values {low:g} to {high:g} shown, as its header asks"
    if least >= 0 and largest <= 255:
        return (0.0, 255.0), None
    if volume.provenance.format == "dicom":
        return (least, largest), f"all values shown, {least:g} to {largest:g}: no window is given"
    raise InputError(
        f"the values are {least:g}..{largest:g}, but 8 bits hold 0..255",
        "Save the picture with 8 bits, with the window you want to see.",
    )


def _normalise(
    channel: NDArray[np.float32],
    inside: NDArray[np.bool_],
    preparation: Preparation,
    shown: tuple[float, float],
) -> tuple[float, float]:
    """Replace the values inside the mask, in place, by their normalised ones.

    ``shown`` are the values that become 0 and 1 by ``eight_bits``.

    Returns:
        The values that became 0 and 1; of ``equalise`` the least and the largest.
    """
    values = channel[inside]
    if preparation.normalisation == "equalise":
        ordered = np.sort(values)
        below = np.searchsorted(ordered, values, side="left")
        up_to = np.searchsorted(ordered, values, side="right")
        # The middle of the ranks that share one value.
        normal = (below + up_to) / (2 * len(values))
        low, high = ordered[0], ordered[-1]
        flat = low == high
    elif preparation.normalisation == "eight_bits":
        (low, high), flat = shown, False
        normal = ((values - low) / (high - low)).clip(0, 1)
    else:
        low, high = np.percentile(values, [preparation.lower, preparation.upper])
        flat = not high > low
        normal = (values - low) / (1 if flat else high - low)
        if preparation.brightest is not None:
            np.clip(normal, 0, preparation.brightest, out=normal)
    if flat:
        msg = "the image has no contrast inside the mask: almost all its values are equal"
        raise InputError(msg, "Check that this is an image and not a mask or a label map.")
    channel[inside] = normal
    return float(low), float(high)


def _correct_bias(channel: NDArray[np.float32], inside: NDArray[np.bool_]) -> None:
    """Divide the values inside the mask, in place, by the shading that N4 finds.

    The field is fitted on every fourth voxel with at most 3 x 30 iterations, which bounds the
    time to a few seconds. Tustison et al., N4ITK: improved N3 bias correction (2010).
    """
    import SimpleITK as sitk

    positive = channel - min(0.0, float(channel[inside].min()))
    image = sitk.GetImageFromArray(positive)
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    factor = [min(4, max(1, size // 8)) for size in image.GetSize()]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([30, 30, 30])
    corrector.Execute(sitk.Shrink(image, factor), sitk.Shrink(mask, factor))
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    channel[inside] = (positive / np.exp(field))[inside]
