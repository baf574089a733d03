"""What to fill in a scan: the voxels of a mask, anomalies that a detector finds, or metal in CT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.run_record import timed
from medgen.tasks.limits import FEWEST_VOXELS
from medgen.volume import Geometry, Volume

if TYPE_CHECKING:
    from medgen.tasks.restoration_scan import Model, Opened

# The rim of an anomaly is partly lesion: it would tell the filling what was there.
ANOMALY_MARGIN_MM = 2.0
# The streaks and shadows of a filling or a clip are worst this close to it.
STREAK_MM = 8.0
# No tissue is this dense: the densest bone and enamel end near 3000 HU, metal is often clipped.
LEAST_METAL_HU = 500.0


@dataclass(frozen=True, eq=False)
class Hole:
    """What to fill.

    Attributes:
        voxels: ``(X, Y[, Z])`` bool on the scan's grid.
        measures: Numbers about it, by name.
        notes: How it was found.
    """

    voxels: NDArray[np.bool_]
    measures: dict[str, float | str]
    notes: tuple[str, ...]


def find_hole(
    opened: Opened,
    *,
    mask: str | Path | NDArray[Any] | Volume | None = None,
    resample_mask: bool = False,
    grow_mm: float = 0.0,
    detector: Model | None = None,
    remove_metal: float | None = None,
    force: bool = False,
) -> Hole:
    """All that is to be filled.

    Args:
        opened: The scan.
        mask: Nonzero where to fill.
        resample_mask: Bring a mask of another grid to the scan's.
        grow_mm: Grow everything by so much.
        detector: The model whose findings to fill.
        remove_metal: Least HU of metal to fill, with its surroundings.
        force: Take metal of what is not known to be CT, too.

    Raises:
        InputError: The mask is on another grid, empty, or covers everything; or there is no metal.
    """
    if not 0 <= grow_mm <= 100:
        raise InputError(f"the hole can grow by 0 to 100 mm, got {grow_mm:g}")
    scan = opened.volume
    found = np.zeros(scan.geometry.shape, dtype=bool)
    notes: list[str] = []
    if mask is not None:
        marked, strange = _marked(mask, scan, resample_mask)
        found |= marked
        notes += strange
    if detector is not None:
        anomalies, note = _anomalies(opened, detector)
        found |= anomalies
        notes.append(note)
    if remove_metal is not None:
        metal, note = _metal(scan, remove_metal, force=force)
        found |= metal
        notes.append(note)
    found = grown(found, scan.geometry, grow_mm)
    _refuse_everything(found)
    share = float(found.mean())
    volume_ml = float(found.sum()) * scan.geometry.voxel_volume_mm3 / 1000
    measures: dict[str, float | str] = {"filled_voxels": int(found.sum())}
    if scan.spatial_dims == 3:
        measures["filled_ml"] = round(volume_ml, 4)
    if share > 0.3:
        notes.append(f"the hole is {share:.0%} of the image: most of the result is invented")
    return Hole(found, measures, tuple(notes))


def _marked(
    mask: str | Path | NDArray[Any] | Volume, scan: Volume, resample_mask: bool
) -> tuple[NDArray[np.bool_], list[str]]:
    """A mask on the scan's grid, ``(X, Y[, Z])`` bool, and what is strange about it.

    Args:
        mask: A file, an array of the scan's shape, or a volume; nonzero is inside.
        scan: The scan it belongs to.
        resample_mask: Bring it to the scan's grid if it is on another.

    Raises:
        InputError: It is on another grid, not finite, empty, or covers everything.
    """
    if isinstance(mask, np.ndarray):
        values = mask
        if values.shape != scan.geometry.shape:
            msg = f"the mask has shape {values.shape}, the scan {scan.geometry.shape}"
            raise InputError(msg, "Give a file or a Volume to have it resampled to the scan.")
    else:
        values = _on_grid(_read(mask), scan, resample_mask)
    notes = []
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise InputError("the mask holds NaN or infinite values", "Give zeros and ones.")
        if ((values > 0) & (values < 1)).any():
            notes.append(
                "the mask holds fractions: every voxel that is not 0 is filled; of a map of "
                "probabilities, make zeros and ones first"
            )
    inside = np.asarray(values != 0)
    if not inside.any():
        msg = "the mask is empty: none of its voxels in the scan's field of view is nonzero"
        raise InputError(msg, "Check that it belongs to this scan.")
    _refuse_everything(inside)
    return inside, notes


def grown(hole: NDArray[np.bool_], geometry: Geometry, distance_mm: float) -> NDArray[np.bool_]:
    """A hole and all voxels whose centre lies within a distance of one of its."""
    if distance_mm <= 0 or not hole.any():
        return hole
    from scipy import ndimage

    # Only the surroundings can change.
    reach = [int(np.ceil(distance_mm / spacing)) for spacing in geometry.spacing_mm]
    where = ndimage.find_objects(hole.astype(np.uint8))[0]
    box = tuple(slice(max(0, w.start - r), w.stop + r) for w, r in zip(where, reach, strict=True))
    distance = ndimage.distance_transform_edt(~hole[box], sampling=geometry.spacing_mm)
    result = hole.copy()
    result[box] |= distance <= distance_mm + 1e-6
    return result


def describe_grid(geometry: Geometry) -> str:
    """A grid in one line, for error messages."""
    size = " x ".join(map(str, geometry.shape))
    spacing = " x ".join(f"{length:.4g}" for length in geometry.spacing_mm)
    first = ", ".join(f"{value:.1f}" for value in geometry.affine[:3, 3])
    return f"{size} voxels of {spacing} mm, axes {geometry.axis_codes}, first voxel at ({first}) mm"


def _read(mask: str | Path | Volume) -> Volume:
    if isinstance(mask, Volume):
        return mask
    from medgen import io

    return io.read(Path(mask), allow_constant=True)


def _on_grid(mask: Volume, scan: Volume, resample_mask: bool) -> NDArray[Any]:
    """The values of a mask at the voxels of the scan."""
    if mask.voxels.shape[0] != 1:
        msg = f"a mask has one channel, this one has {mask.voxels.shape[0]}"
        raise InputError(msg, "Give a grey image whose nonzero values are the hole.")
    if mask.geometry.same_grid_as(scan.geometry):
        return mask.voxels[0]
    if mask.spatial_dims != scan.spatial_dims:
        msg = f"the mask is {mask.spatial_dims}-D, the scan {scan.spatial_dims}-D"
        raise InputError(msg, "Give a mask of the same image.")
    if not resample_mask:
        msg = (
            "the mask lies on another grid than the scan\n"
            f"  scan: {describe_grid(scan.geometry)}\n"
            f"  mask: {describe_grid(mask.geometry)}"
        )
        raise InputError(msg, "Use --resample-mask to bring the mask to the scan's grid.")
    from medgen.resampling import resample

    inside = (mask.voxels[0] != 0).astype(np.float32)
    return resample(inside, mask.geometry, scan.geometry, "nearest")


def _refuse_everything(hole: NDArray[np.bool_]) -> None:
    left = hole.size - int(hole.sum())
    if left < FEWEST_VOXELS:
        msg = f"the hole covers the whole scan: {left} of {hole.size} voxels are left"
        raise InputError(msg, "Check the mask: is it inverted?")


def _anomalies(opened: Opened, detector: Model) -> tuple[NDArray[np.bool_], str]:
    """The findings of a detector, with their rims."""
    from medgen.tasks.detect import detect_anomalies

    scan = opened.volume
    with timed(opened.timings, "detect"):
        found: Any = detect_anomalies(
            scan, detector, device=opened.wish, seed=opened.seed, max_memory_gb=opened.limit_gb
        )
    inside = grown(found.mask, scan.geometry, ANOMALY_MARGIN_MM)
    volume_ml = float(found.mask.sum()) * scan.geometry.voxel_volume_mm3 / 1000
    size = f" of {volume_ml:.3g} ml" if scan.spatial_dims == 3 else ""
    note = (
        f"{found.model.name} {found.model.version} found {len(found.findings)} anomalies{size}; "
        f"they are filled with {ANOMALY_MARGIN_MM:g} mm around them"
    )
    return inside, note


def _metal(scan: Volume, threshold: float, *, force: bool) -> tuple[NDArray[np.bool_], str]:
    """Metal, and what lies close to it."""
    modality = scan.provenance.modality
    if modality not in (None, "CT") and not force:
        raise InputError(f"--remove-metal is for CT, this scan is {modality}")
    if not threshold >= LEAST_METAL_HU:
        msg = f"metal is denser than {LEAST_METAL_HU:g} HU, got a threshold of {threshold:g}"
        raise InputError(msg, "2500 to 3000 HU is usual.")
    metal = np.asarray(scan.voxels[0] > threshold)
    if not metal.any():
        brightest = float(scan.voxels[0].max())
        msg = f"no voxel is above {threshold:g} HU: the brightest has {brightest:g}"
        raise InputError(msg, "Lower the threshold, if there is metal at all.")
    note = (
        f"metal: {int(metal.sum())} voxels above {threshold:g} HU, filled with {STREAK_MM:g} mm "
        "around them; streaks farther away stay"
    )
    return grown(metal, scan.geometry, STREAK_MM), note
