"""Where voxels are in the world. No torch here, and no file formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgen.errors import GeometryError

# Largest difference (mm) between two affines that still counts as the same grid.
GRID_TOLERANCE_MM = 1e-4


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in the world.

    Attributes:
        shape: Spatial shape, ``(X, Y, Z)`` or ``(X, Y)``.
        affine: 4x4 matrix from voxel indices to RAS+ millimetres (NIfTI convention: x to the
            patient's right, y to the front, z to the head). A 2-D grid has its plane's normal
            in the third column.

    Raises:
        GeometryError: If the affine is singular, not finite, or not 4x4.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) not in (2, 3) or min(shape) < 1:
            msg = f"a grid needs 2 or 3 positive spatial sizes, got shape {shape}"
            raise GeometryError(msg)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            msg = f"the affine must be a finite 4x4 matrix, got\n{affine}"
            raise GeometryError(msg)
        # Relative to the voxel size, so micrometre voxels are not called singular.
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            msg = (
                "the affine is singular: it does not say where the voxels are "
                f"(voxel axes in mm are the columns of\n{affine[:3, :3]})"
            )
            hint = "Repair the header (qform/sform) with the tool that wrote the file."
            raise GeometryError(msg, hint)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @cached_property
    def spacing_mm(self) -> tuple[float, ...]:
        """Length of each voxel axis in mm, one per spatial dimension."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(length) for length in lengths[: self.spatial_dims])

    @cached_property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm3 (a 2-D pixel is as thick as the affine's third column)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @cached_property
    def axis_codes(self) -> str:
        """Nearest anatomical direction of each array axis, such as ``RAS`` or ``LPI``."""
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        codes = [""] * 3
        # Assign the most certain axis first so that no letter is used twice.
        order = np.dstack(np.unravel_index(np.argsort(-np.abs(cosines), axis=None), (3, 3)))[0]
        used: set[int] = set()
        for world, array in order:
            if world not in used and not codes[array]:
                codes[array] = ("LR", "PA", "IS")[world][int(cosines[world, array] > 0)]
                used.add(int(world))
        return "".join(codes[: self.spatial_dims])

    def to_world(self, voxel: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices ``(..., spatial_dims)`` to RAS+ mm ``(..., 3)``."""
        points = np.asarray(voxel, dtype=np.float64)
        if self.spatial_dims == 2:
            points = np.concatenate([points, np.zeros_like(points[..., :1])], axis=-1)
        return points @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, world: ArrayLike) -> NDArray[np.float64]:
        """RAS+ mm ``(..., 3)`` to fractional voxel indices ``(..., spatial_dims)``."""
        offset = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        return (offset @ np.linalg.inv(self.affine[:3, :3]).T)[..., : self.spatial_dims]

    def same_grid_as(self, other: Geometry, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """True if shapes agree and no voxel centre differs by more than the tolerance."""
        if self.shape != other.shape:
            return False
        far = np.array(np.meshgrid(*[(0, size - 1) for size in self.shape])).reshape(
            self.spatial_dims, -1
        )
        difference = self.to_world(far.T) - other.to_world(far.T)
        return bool(np.abs(difference).max() <= tolerance_mm)


@dataclass(frozen=True)
class Provenance:
    """Where a volume came from. Never holds a patient's name or number.

    Attributes:
        sources: Paths as the user gave them.
        format: ``nifti``, ``dicom``, ``png``, ... or ``memory``.
        modality: DICOM modality code (``MR``, ``CT``, ...) if known.
        units: Unit of the voxel values if known (``HU``, ``SUVbw``, ...).
        window: Values that the header asks to be shown black and white, if it says so.
        details: Anything a writer needs later (NIfTI form codes, DICOM references).
    """

    sources: tuple[str, ...] = ()
    format: str = "memory"
    modality: str | None = None
    units: str | None = None
    window: tuple[float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel values on a grid.

    Attributes:
        voxels: ``(C, X, Y, Z)`` or ``(C, X, Y)``.
        geometry: The grid of one channel.
        provenance: Where the values came from.
    """

    voxels: NDArray[Any]
    geometry: Geometry
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if self.voxels.shape[1:] != self.geometry.shape:
            msg = (
                f"voxels must have shape (C, *{self.geometry.shape}) to fit the grid, "
                f"got {self.voxels.shape}"
            )
            raise GeometryError(msg)

    @classmethod
    def from_array(
        cls, array: ArrayLike, affine: ArrayLike, provenance: Provenance | None = None
    ) -> Volume:
        """One-channel volume from an array ``(X, Y, Z)`` or ``(X, Y)`` and its RAS+ mm affine."""
        voxels = np.asarray(array)
        geometry = Geometry(voxels.shape, np.asarray(affine, dtype=np.float64))
        return cls(voxels[None], geometry, provenance or Provenance())

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4 voxel-to-RAS+ mm matrix."""
        return self.geometry.affine

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.geometry.spatial_dims

    def with_voxels(self, voxels: NDArray[Any]) -> Volume:
        """The same grid and provenance with other values ``(C, *shape)``."""
        return replace(self, voxels=voxels)
