"""Every hostile archive is read as the truth about it says, or refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import hostile_dicom
import numpy as np
import pytest
from hostile_objects import BIRTH, NAME, PATIENT_ID, Hostile, Image
from scipy import ndimage

from medgen import io
from medgen.errors import InputError
from medgen.io.dicom_index import Archive, ImageSeries
from medgen.volume import Volume

KINDS = [k for k in hostile_dicom.KINDS if not k.startswith("orientation")] + [
    "orientation 03 up", "orientation 08 down", "orientation 17 up", "orientation 22 down",
]  # fmt: skip
PLANES = [k for k in hostile_dicom.KINDS if k.startswith("orientation")]


def units(kind: str) -> str | None:
    return "SUVbw" if kind.startswith("PET") else None


def values_at(volume: Volume, image: Image, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """What the volume shows at the places that are known, and what it should."""
    places = np.array([place for place, _ in image.points[frame]])
    voxels = volume.geometry.to_voxel(places)
    array = volume.voxels[0]
    if array.ndim == 2:
        array, voxels = array[..., None], np.c_[voxels, np.zeros(len(voxels))]
    if image.frames:  # the places are voxels: no interpolation
        nearest = np.rint(voxels).astype(int)
        off = np.abs((voxels - nearest) * np.linalg.norm(volume.affine[:3, :3], axis=0)).max(axis=1)
        inside = ((nearest >= 0) & (nearest < array.shape)).all(axis=1) & (off < 0.01)
        found = np.full(len(places), np.inf)
        found[inside] = array[tuple(nearest[inside].T)]
    else:
        found = ndimage.map_coordinates(array, voxels.T, order=1, mode="nearest")
    return found, np.array([value for _, value in image.points[frame]])


def matches(found: ImageSeries, image: Image, kind: str) -> bool:
    """Whether a series that was found is this image of the truth, in every frame."""
    count = max(len(image.points), 1)
    if found.facts["frames"] != count or found.facts["blocking"]:
        return False
    for frame in range(count):
        volume = io.read(found.locations, frame=frame, units=units(kind))
        if image.frames and volume.voxels.squeeze().shape != image.frames[frame].squeeze().shape:
            return False
        if not image.points[frame]:  # a picture without a place
            continue
        seen, expected = values_at(volume, image, frame)
        if np.abs(seen - expected).max() > max(image.tolerance, 1e-4 * np.abs(expected).max()):
            return False
        if image.labels and image.labels[frame] not in found.facts["frame_labels"][frame]:
            return False
    assert found.facts["modality"] == image.modality
    return True


def refused(made: Hostile, archive: Archive, kind: str) -> None:
    """Reading says why, in one error that names nobody."""
    with pytest.raises(InputError, match=f"(?i){made.reason}") as caught:
        io.read(made.folder, units=units(kind))
    for secret in (NAME, BIRTH, PATIENT_ID):
        assert secret not in str(caught.value)
    for series in archive.images:
        if not made.needs_pixels and units(kind) is None:
            assert series.facts["blocking"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path, seed=5)
    try:
        archive = io.index_dicom(made.folder)
    except InputError as error:  # a zip that is refused before anything is read from it
        assert made.expect == "refused"
        assert re.search(made.reason, error.message)
        return
    assert not any(secret in repr(archive) for secret in (NAME, BIRTH, PATIENT_ID))
    if made.foreign:
        assert archive.foreign + sum(a.objects for a in archive.set_aside) >= made.foreign
    if made.expect == "refused":
        refused(made, archive, kind)
        return
    for reason, objects in made.aside.items():
        found = [a.objects for a in archive.set_aside if re.search(reason, a.reason, re.I)]
        assert sum(found) == objects, archive.set_aside
    if made.expect == "set aside":
        assert archive.images == []
        assert all(re.search(made.reason, a.reason, re.I) for a in archive.set_aside)
        return
    assert len(archive.images) == len(made.images)
    for image in made.images:
        assert sum(matches(found, image, kind) for found in archive.images) == 1
    if len(made.images) == 1 and len(made.images[0].points) == 1:
        assert io.read(made.folder, units=units(kind)).voxels.size > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANES)
def test_every_orientation(tmp_path: Path, kind: str) -> None:
    test_every_kind(tmp_path, kind)
