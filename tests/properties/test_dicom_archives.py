"""Every hostile archive is read where it says so, refused or set aside with the reason if not.

Where a point of an image lies in the world, and the value there, must be right to 0.01 mm.
"""

from __future__ import annotations

import re
from pathlib import Path

import hostile_dicom
import nibabel as nib
import numpy as np
import pytest
from hostile_objects import BIRTH, NAME, PATIENT_ID, Array, Hostile, Image, head
from scipy import ndimage

from medgen import io
from medgen.errors import InputError
from medgen.io.dicom_index import Archive, ImageSeries

NEAR_MM = 0.01


def kinds(expect: str) -> list[str]:
    return [kind for kind, expected in hostile_dicom.EXPECTED.items() if expected == expect]


def build(kind: str, folder: Path) -> Hostile:
    return hostile_dicom.build(kind, folder / "in", seed=5)


def index(made: Hostile) -> Archive:
    archive = io.index_dicom(made.folder)
    for text in (NAME, PATIENT_ID, BIRTH, NAME.split("^")[0], "Secret", "A-99"):
        assert text not in repr(archive), text
    return archive


def shows(array: Array, affine: Array, image: Image, frame: int) -> bool:
    """Whether every point of a frame has its value in ``(X, Y, Z)`` voxels.

    Without resampling a point is the centre of a voxel; with it, the value is interpolated.
    """
    places = np.array([place for place, _ in image.points[frame]])
    expected = np.array([value for _, value in image.points[frame]])
    indices = (np.linalg.inv(affine) @ np.c_[places, np.ones(len(places))].T)[:3]
    nearest = np.rint(indices)
    off = np.linalg.norm(affine[:3, :3] @ (indices - nearest), axis=0)
    if image.frames and off.max() > NEAR_MM:
        return False
    # A place on the outermost plane must not fall off it by a rounding error.
    indices = np.where(np.abs(indices - nearest) < 1e-3, nearest, indices)
    found = ndimage.map_coordinates(array.astype(float), indices, order=1, cval=np.nan)
    scale = 1.0 if image.tolerance >= 1 else np.maximum(np.abs(expected), 1.0)
    return bool((np.abs(found - expected) <= image.tolerance * scale).all())


def read(series: ImageSeries, frame: int | None, units: str | None) -> tuple[Array, Array]:
    volume = io.read(series.locations, frame=frame, units=units)
    array = volume.voxels[0]
    return (array if array.ndim == 3 else array[..., None]), volume.affine


def is_image(series: ImageSeries, image: Image, units: str | None) -> bool:
    """Whether a series of the archive is the image, frame by frame and in the right order."""
    count = len(image.points)
    if series.facts["frames"] != count or series.facts["modality"] != image.modality:
        return False
    for number in range(count):
        array, affine = read(series, number if count > 1 else None, units)
        if image.affine is None and image.frames:  # a picture without a place in the world
            if not np.array_equal(array, image.frames[number]):
                return False
        elif not shows(array, affine, image, number):
            return False
    return True


@pytest.mark.parametrize("kind", kinds("read"))
def test_images_come_out_with_every_point_in_its_place(tmp_path: Path, kind: str) -> None:
    made = build(kind, tmp_path)
    archive = index(made)
    assert [s.facts["blocking"] for s in archive.images] == [None] * len(made.images)
    left = list(archive.images)
    for image in made.images:
        (match,) = [series for series in left if is_image(series, image, made.units)][:1] or [None]
        assert match is not None, "an image of the archive is not among what was read"
        left.remove(match)
        labels = match.facts["frame_labels"]
        assert len(labels) == (len(image.points) if len(image.points) > 1 else 0)
        for words, label in zip(image.labels, labels, strict=True):
            assert words in label
        if image.frames:
            shape = tuple(n for n in image.frames[0].shape if n > 1)
            assert match.facts["shape"] == shape


@pytest.mark.parametrize("kind", kinds("read"))
def test_what_lies_beside_images_is_counted(tmp_path: Path, kind: str) -> None:
    made = build(kind, tmp_path)
    archive = index(made)
    for reason, objects in made.aside.items():
        fitting = [entry for entry in archive.set_aside if re.search(reason, entry.reason)]
        assert sum(entry.objects for entry in fitting) == objects, (reason, archive.set_aside)
    assert sum(e.objects for e in archive.set_aside) == sum(made.aside.values())
    assert archive.foreign == made.foreign
    assert bool(archive.unreadable) == (kind == "unreadable folder")


@pytest.mark.parametrize("kind", kinds("refused"))
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    made = build(kind, tmp_path)
    with pytest.raises(InputError, match=made.reason) as caught:
        io.read(made.folder, units=made.units)
    for text in (NAME.split("^")[0], PATIENT_ID, BIRTH):
        assert text not in str(caught.value)
    if made.folder.is_dir() and not made.needs_pixels and not made.units:
        reasons = [s.facts["blocking"] for s in index(made).images]
        assert all(reason and re.search(made.reason, reason["error"]) for reason in reasons)


@pytest.mark.parametrize("kind", kinds("set aside"))
def test_what_is_no_image_is_set_aside_with_the_reason(tmp_path: Path, kind: str) -> None:
    made = build(kind, tmp_path)
    archive = index(made)
    assert archive.images == []
    assert archive.set_aside
    for entry in archive.set_aside:
        assert re.search(made.reason, entry.reason)


@pytest.mark.parametrize(
    "kind", ["oblique", "tilted gantry", "mosaic", "enhanced MR, shuffled", "PET START", "zip-slip"]
)
def test_nifti_keeps_every_point(tmp_path: Path, kind: str) -> None:
    """To NIfTI and back through nibabel."""
    made = build(kind, tmp_path)
    volume = io.read(made.folder, units=made.units)
    path = io.write_nifti(tmp_path / "out.nii.gz", volume.voxels[0], volume.geometry, like=volume)
    image = nib.load(path)
    assert shows(np.asarray(image.dataobj), image.affine, made.images[0], 0)


@pytest.mark.parametrize("kind", [kind for kind in hostile_dicom.KINDS if "PET" in kind])
def test_pet_keeps_its_units_unless_asked(tmp_path: Path, kind: str) -> None:
    volume = io.read(build(kind, tmp_path).folder)
    assert volume.provenance.units == "BQML"
    start, step = (0.5, 0.25) if kind == "enhanced PET" else (1.0, 0.5)
    slopes = start + step * np.arange(12)
    assert np.allclose(volume.voxels[0], head(5) * slopes)


def test_suv_of_enhanced_pet(tmp_path: Path) -> None:
    """400 MBq, 80 kg, decay corrected to an hour after the injection."""
    made = build("enhanced PET", tmp_path)
    volume = io.read(made.folder, units="SUVbw")
    factor = 80_000 / (4e8 * 2 ** (-3600 / 6586.2))
    assert np.allclose(volume.voxels[0], made.volumes[0] * factor, rtol=1e-5)


def test_zips_write_nothing(tmp_path: Path) -> None:
    made = build("zip-slip", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    io.read(made.folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "slip").exists()
