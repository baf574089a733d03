"""The result of the restoration tasks: inpainting, super-resolution, denoising, translation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medgen.manifest import Manifest, Restored
from medgen.volume import Geometry, Volume

# What won on held-out real scans. No network of ours fills holes better than the smoothest surface.
DEFAULT_MODELS: dict[Restored, str] = {
    "inpaint": "biharmonic",
    "super-resolve": "brain-super-resolution",
    "denoise": "brain-denoise",
    "translate": "brain-t1-translation",
}


@dataclass(frozen=True, eq=False)
class Restoration:
    """A scan completed, refined or translated, and what of it was computed.

    Attributes:
        verb: The task: ``inpaint``, ``super-resolve``, ``denoise`` or ``translate``.
        kind: The word for the result in file names: ``inpainted``, ``superresolved``,
            ``denoised``, or the target of a translation such as ``t2``.
        volume: The scan as read.
        output: The result ``(X, Y[, Z])`` on ``geometry``, in the scan's own values or, of a
            translation, in the fixed unit that the model states. An inpainted scan equals the
            scan bit for bit outside the hole, and has its type.
        geometry: The grid of the result: the scan's, except after super-resolution.
        before: The scan on that grid, ``(X, Y[, Z])``, to compare with; after super-resolution
            its cubic interpolation.
        uncertainty: Half width of the interval around ``output`` that holds the truth with
            probability ``level``, ``(X, Y[, Z])`` float32 in the unit of ``output``, 0 where
            nothing was computed; only relative if ``level`` is None; None if no network ran.
        level: Probability 0..1 that the uncertainty stands for, as calibrated; None if not.
        invented: Voxels that were computed without data of their own ``(X, Y[, Z])`` bool: the
            hole; None if every voxel was computed from the scan.
        measures: What was measured on the result, by name, for people and files.
        model: The manifest of the model; of a method without training, one that describes it.
        model_sha256: Hash that identifies the model and all its files; "" without a package.
        notes: What was found and done on the way, for people.
        fallbacks: What could not be done as wished, and what was done instead.
        timings: Seconds of each step.
        device: Where the network ran.
        seed: Seed of the run.
        estimated_memory_gb: Estimated peak memory, in GB.
    """

    verb: Restored
    kind: str
    volume: Volume
    output: NDArray[np.generic]
    geometry: Geometry
    before: NDArray[np.generic]
    uncertainty: NDArray[np.float32] | None
    level: float | None
    invented: NDArray[np.bool_] | None
    model: Manifest
    model_sha256: str
    measures: dict[str, float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0
    estimated_memory_gb: float = 0.0

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        report: bool = True,
        dicom: bool = False,
    ) -> dict[str, Path]:
        """Write images, measures, ``run.json`` and the report into a folder, all or nothing.

        Args:
            folder: Made if absent; other files in it are left alone.
            overwrite: Replace the outputs of an earlier run.
            report: Also draw ``overview.png`` and ``report.html``.
            dicom: Also write a derived DICOM series; the scan must have been read from DICOM.

        Returns:
            The path of each output by what it is.

        Raises:
            InputError: An output exists, the folder cannot be written, or DICOM is wanted of a
                scan that was not read from DICOM.
        """
        from medgen.tasks.restoration_files import save_restoration

        return save_restoration(self, Path(folder), overwrite=overwrite, report=report, dicom=dicom)
