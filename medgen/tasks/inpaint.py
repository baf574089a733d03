"""Inpaint: fill holes of a scan with what healthy anatomy would look like there.

The hole is left out of everything that is learned from the scan. It is filled by the smoothest
surface through its rim first, in the scan's own voxels (:func:`medgen.classical.biharmonic`). The
network sees the filled scan on its own grid and works only where the hole is; what it adds to the
filling there is interpolated to the scan's voxels and added in the hole. Every other voxel is the
scan's, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medgen.classical import biharmonic, fill_memory_gb
from medgen.errors import InputError
from medgen.manifest import Restored
from medgen.metrics.seam import seam
from medgen.package import Correction
from medgen.resampling import resample
from medgen.run_record import timed
from medgen.tasks.holes import Hole, find_hole
from medgen.tasks.restoration import DEFAULT_MODELS, Restoration
from medgen.tasks.restoration_scan import (
    Model,
    Opened,
    Predicted,
    in_type_of,
    open_scan,
    predict,
    restoration_of,
    say_memory,
    to_half_width,
)
from medgen.tasks.running import Progress
from medgen.volume import Geometry, Volume

if TYPE_CHECKING:
    from medgen.inference import Predicts
    from medgen.preparation import Prepared

VERB: Restored = "inpaint"


def inpaint(
    source: str | Path | Volume,
    model: Model = DEFAULT_MODELS[VERB],
    *,
    mask: str | Path | NDArray[np.generic] | Volume | None = None,
    remove_anomalies: bool = False,
    detector: Model = "brain-mr",
    remove_metal: float | None = None,
    resample_mask: bool = False,
    grow_mm: float = 0.0,
    method: Predicts | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Restoration:
    """Fill the holes of a scan: those of a mask, its anomalies, or metal with its surroundings.

    At least one of ``mask``, ``remove_anomalies`` and ``remove_metal`` must be given; together,
    all of their voxels are filled.

    Args:
        source: A file, a DICOM folder, or a volume in memory; one channel.
        model: Name or folder of a package, one that is loaded, or ``biharmonic`` or ``nearest``.
        mask: Nonzero where to fill: a file, an array of the scan's shape, or a volume.
        remove_anomalies: Find anomalies first, and fill them: the pseudo-healthy scan.
        detector: The model that finds them.
        remove_metal: CT only: values above so many HU are metal; it is filled with what lies
            within :data:`~medgen.tasks.holes.STREAK_MM` of it, where streaks are worst.
        resample_mask: Bring a mask of another grid to the scan's, nearest neighbour.
        grow_mm: Grow the hole by so much on all sides.
        method: The package's network, if it is loaded: many scans then share it.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda[:N]`` or ``mps``.
        seed: Seeds torch; prediction draws no random numbers, so results do not depend on it.
        max_memory_gb: Refuse scans that would need more (default: 80 % of the free memory, at
            most 16 GB).
        frame: Which image of a 4-D file, from 0.
        series: Which DICOM series of a folder.
        force: Also take a scan of another contrast or modality than the model was trained on.
        progress: Called with (done, total) as the network works through the scan.

    Returns:
        The filled scan, on its own grid and of its own type; ``invented`` is the hole. Without
        an anomaly to remove it is the scan, and a note says so.

    Raises:
        InputError: The scan, the mask, the model or the device cannot be used; says why and what
            to do.
    """
    refuse_nothing(mask, remove_anomalies, remove_metal)
    opened = open_scan(
        VERB, source, model, method=method, device=device, seed=seed,
        max_memory_gb=max_memory_gb, frame=frame, series=series, force=force,
    )  # fmt: skip
    hole = find_hole(
        opened, mask=mask, resample_mask=resample_mask, grow_mm=grow_mm,
        detector=detector if remove_anomalies else None, remove_metal=remove_metal, force=force,
    )  # fmt: skip
    if not hole.voxels.any():
        return _unchanged(opened, hole)
    fill_gb = _check_memory(opened, hole.voxels)
    fill = biharmonic if opened.package else opened.classical
    with timed(opened.timings, "fill"):
        start = fill(opened.volume.voxels[0], hole.voxels)
    if opened.package is None:
        opened = replace(opened, memory_gb=opened.memory_gb + fill_gb)
        return _filled(opened, hole, _Filling(start[hole.voxels], None, None, ()))
    return _filled(opened, hole, _correct(opened, hole.voxels, start, fill_gb, progress))


def refuse_nothing(mask: object, remove_anomalies: bool, remove_metal: float | None) -> None:
    """Raise if nobody said what to fill.

    Raises:
        InputError: Neither a mask nor anomalies nor metal.
    """
    if mask is None and not remove_anomalies and remove_metal is None:
        raise InputError(
            "nothing to fill: give --mask, --remove-anomalies or --remove-metal",
            "For example --mask lesion.nii.gz, an image that is nonzero where to fill.",
        )


class _Filling(NamedTuple):
    """Values ``(N,)`` for the voxels of the hole, their uncertainty, and how they were made."""

    values: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None
    predicted: Predicted | None
    notes: tuple[str, ...]


def _check_memory(opened: Opened, hole: NDArray[np.bool_]) -> float:
    """What the classical filling needs in GB besides the scan; refuses what would not fit.

    Raises:
        InputError: With the scan it exceeds the limit.
    """
    need = fill_memory_gb(hole)
    total = opened.memory_gb + need
    if total > opened.limit_gb:
        raise InputError(
            f"to fill so large a hole needs about {total:.1f} GB, the limit is "
            f"{opened.limit_gb:.3g} GB",
            "Fill less at once, or raise the limit with --max-memory (GB).",
        )
    if opened.package is None:
        say_memory(total)
    return need


def _correct(
    opened: Opened,
    hole: NDArray[np.bool_],
    start: NDArray[np.float32],
    fill_gb: float,
    progress: Progress | None,
) -> _Filling:
    """What the network makes of the filled scan ``start`` in the hole."""
    import torch

    assert opened.package is not None
    with timed(opened.timings, "prepare"):
        prepared = opened.package.preparation.apply(opened.volume, ignore=hole)
        unknown = prepared.ignored
        assert unknown is not None
        low, high = prepared.ranges[0]
        image = torch.cat([prepared.image.as_tensor(), unknown.float()])
        # Scaled like everything around, but not blanked where it lies beyond the foreground.
        shown = torch.from_numpy(resample(start, prepared.source, prepared.grid))
        image[0][unknown[0]] = (shown[unknown[0]] - low) / (high - low)
        del shown
    correcting = replace(opened, method=Correction(opened.network))
    predicted = predict(correcting, image, unknown, extra_gb=fill_gb, progress=progress)
    del image
    with timed(opened.timings, "back to the scan's grid"):
        # Nothing is added at known voxels, and their values have no error.
        added, spread = (
            _in_hole(each[0], prepared, hole) for each in (predicted.output, predicted.spread)
        )
        half = to_half_width(spread, prepared.ranges[0], opened.restores)
    values = start[hole] + added * np.float32(high - low)
    return _Filling(values, half, predicted, prepared.notes)


def _in_hole(
    values: NDArray[np.float32], prepared: Prepared, hole: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Values on the prepared grid, interpolated at the voxels of the hole ``(N,)``."""
    box = _box(hole)
    affine = prepared.source.affine.copy()
    affine[:3, 3] = prepared.source.to_world([part.start for part in box])
    part = Geometry(hole[box].shape, affine)
    return resample(values, prepared.grid, part)[hole[box]]


def _box(hole: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around the hole."""
    box = []
    for axis in range(hole.ndim):
        found = np.flatnonzero(hole.any(axis=tuple(set(range(hole.ndim)) - {axis})))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _filled(opened: Opened, hole: Hole, filling: _Filling) -> Restoration:
    """The scan with its hole filled, and how well the filling joins on."""
    scan, voxels = opened.volume.voxels[0], hole.voxels
    output = scan.copy()
    output[voxels] = in_type_of(filling.values, scan)
    uncertainty = None
    if filling.uncertainty is not None:
        uncertainty = np.zeros(scan.shape, np.float32)
        uncertainty[voxels] = filling.uncertainty
    measures = dict(hole.measures)
    joint = seam(output, voxels)
    measures["seam"] = "undefined" if joint is None else joint
    return restoration_of(
        opened, "inpainted", output, uncertainty=uncertainty, invented=voxels, measures=measures,
        notes=(*hole.notes, *filling.notes), predicted=filling.predicted,
    )  # fmt: skip


def _unchanged(opened: Opened, hole: Hole) -> Restoration:
    """A scan without anything to remove."""
    scan = opened.volume.voxels[0]
    result = restoration_of(
        opened, "inpainted", scan.copy(), invented=hole.voxels, measures=hole.measures,
        notes=(*hole.notes, "nothing was filled"),
    )  # fmt: skip
    return replace(result, level=None)
