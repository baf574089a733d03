"""Patches of real scans, for methods that learn to undo a known degradation of them.

A folder of NIfTI volumes or pictures is read once, resampled to one voxel size and kept in half
precision. Patches come from anywhere, along any axis and mirrored at random: what is learnt from a
few scans is local structure, not one orientation. Scans are split by group, see
:mod:`medgen.grouped_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Generator, Tensor

from medgen.errors import InputError
from medgen.grouped_files import PICTURES, VOLUMES, SetConfig, condition_names, facts, split
from medgen.grouped_files import files as files_in
from medgen.image_sets import read_image, right_front_up

# These become 0 and 1, as in medgen.preparation.
PERCENTILES = (1.0, 99.0)


class RealScansConfig(SetConfig):
    """Settings of the real scans."""

    conditions: dict[str, str] | None = Field(
        {}, description="name and subfolder of each part of the set; {}: the folder itself"
    )
    spacing_mm: float | None = Field(
        None, gt=0, description="voxel size to resample volumes to; none: as they are stored"
    )
    permute: bool = Field(
        True, description="cut patches along any axis; else the first axis is that of the slices"
    )


class RealScans:
    """Real scans in memory, values scaled so that the 1st and 99th percentile are 0 and 1.

    Attributes:
        facts: What the set is made of; groups only as hashes.
        training: Scans ``(X, Y, Z)`` float16; of pictures Z is 1.
        held_out: The same, of groups that are never trained on.
        flat: Whether there are pictures among them, of which a patch is one slice.

    Raises:
        InputError: The set is empty, damaged, in colour, or too small to split.
        LeakageError: A group or image would be on both sides of the split.
    """

    def __init__(self, config: RealScansConfig) -> None:
        self.config = config
        endings = PICTURES + VOLUMES
        train, held_out = split(
            config, lambda folder: [(path, None) for path in files_in(folder, endings)]
        )
        names = condition_names(config, lambda folder: [])
        self.facts = facts(train, held_out, names)
        self.training = [self._read(item.path) for item in train]
        self.held_out = [self._read(item.path) for item in held_out]
        self.flat = any(scan.shape[2] == 1 for scan in self.training)

    def _read(self, path: Path) -> Tensor:
        """One scan, scaled; negative background values are kept."""
        if path.name.lower().endswith(PICTURES):
            pixels, _ = read_image(path)
            voxels, spacing = pixels.astype(np.float32)[..., None], None
        else:
            from medgen.io.nifti import read_nifti

            volume = read_nifti(path)
            voxels = right_front_up(volume.voxels, volume.affine).astype(np.float32)
            spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
            order = np.abs(volume.affine[:3, :3]).argmax(1)
            spacing = spacing[order]
        if len(voxels) != 1:
            raise InputError(
                f"{path} has {len(voxels)} channels; one is needed", "Use grey images."
            )
        image = voxels[0]
        if spacing is not None and self.config.spacing_mm is not None:
            zoom = spacing / self.config.spacing_mm
            if np.abs(zoom - 1).max() > 0.01:
                image = ndimage.zoom(image, zoom, order=3, mode="nearest", grid_mode=True)
        low, high = np.percentile(image, PERCENTILES)
        if not high > low:
            raise InputError(f"{path} has no contrast: almost all its values are equal")
        return torch.from_numpy((image - low) / (high - low)).half()

    def patch(
        self, scans: Sequence[Tensor], shape: Sequence[int], generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """A patch ``(D, H, W)`` of a random scan, float32, and where the scan is, bool.

        A scan that is smaller than the patch is continued by reflection.

        Args:
            scans: :attr:`training` or :attr:`held_out`.
            shape: Of the patch; a picture is cut along its last axis, so D must be 1.
            generator: Source of randomness.
        """
        scan = scans[int(torch.randint(len(scans), (), generator=generator))]
        if scan.shape[2] == 1:
            order = [2, 0, 1]
            if self.config.permute and torch.rand((), generator=generator) < 0.5:
                order = [2, 1, 0]
        elif self.config.permute:
            order = torch.randperm(3, generator=generator).tolist()
        else:
            order = [0, 1, 2]
        scan = scan.permute(order)
        inside = torch.ones(tuple(shape), dtype=torch.bool)
        for axis, wanted in enumerate(shape):
            size = scan.shape[axis]
            room = size - wanted
            first = int(torch.randint(abs(room) + 1, (), generator=generator))
            if torch.rand((), generator=generator) < 0.5:
                scan = scan.flip(axis)
            if room >= 0:
                scan = scan.narrow(axis, first, wanted)
                continue
            scan = scan.index_select(axis, reflected(size, wanted, first))
            if size > 1:  # a picture stands for all its neighbours
                inside.narrow(axis, 0, first).fill_(False)
                inside.narrow(axis, first + size, wanted - first - size).fill_(False)
        return scan.float(), inside


def reflected(size: int, wanted: int, before: int) -> Tensor:
    """Indices of an axis of ``size`` continued by reflection to ``wanted``, ``before`` in front."""
    period = max(2 * size - 2, 1)
    index = (torch.arange(wanted) - before) % period
    return torch.minimum(index, period - index).clamp(max=size - 1)
