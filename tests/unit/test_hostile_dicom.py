"""The hostile archives say the truth about themselves, by readers that are not medgen's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import hostile_cohorts
import hostile_dicom
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hostile_objects import NAME, Array, Hostile, Image, Point

BESIDE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
CONVERTER = shutil.which("dcm2niix", path=BESIDE)
VALIDATOR = shutil.which("dciodvfy", path=BESIDE)

# Kinds that GDCM reads as one stack of plain slices.
PLAIN = [k for k in hostile_dicom.KINDS if k.startswith("orientation")] + [
    "oblique", "anisotropic", "nearly even", "RLE", "JPEG-LS", "JPEG 2000", "JPEG Lossless",
    "deflated", "big endian", "no preamble", "signed 12 bits", "16 bits", "odd names",
    "derived",
]  # fmt: skip
CONVERTED = [
    "orientation 00 up", "orientation 07 down", "orientation 13 up", "orientation 22 down",
    "oblique", "anisotropic", "enhanced MR", "enhanced CT", "mosaic", "mosaic times", "echoes",
    "RLE", "big endian", "no preamble", "signed 12 bits", "two patients, one series number",
    "rescale per slice",
]  # fmt: skip
VALID = [
    "oblique", "b-values", "tilted gantry", "PET START", "mosaic", "orientation 05 up",
    "enhanced MR", "enhanced b-values", "enhanced CT", "enhanced PET",

]  # fmt: skip


def value_at(point: Point, array: Array, affine: Array) -> float | None:
    """The voxel whose centre lies within 0.01 mm of a point; None if there is none."""
    place = np.linalg.inv(affine) @ (*point[0], 1.0)
    voxel = np.rint(place[:3]).astype(int)
    off = np.linalg.norm(affine[:3, :3] @ (place[:3] - voxel))
    inside = (voxel >= 0).all() and (voxel < array.shape[:3]).all()
    return float(array[tuple(voxel)]) if inside and off < 0.01 else None


def shows(array: Array, affine: Array, points: Iterable[Point]) -> bool:
    return all(
        (value := value_at(point, array, affine)) is not None
        and abs(value - point[1]) < 1e-3 * max(abs(point[1]), 1.0)
        for point in points
    )


@pytest.mark.parametrize("kind", PLAIN)
def test_gdcm_finds_every_point(tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path, seed=3)
    folder = next(p.parent for p in sorted(tmp_path.rglob("*")) if p.is_file())
    if kind == "derived":
        folder = tmp_path / "scan"
    image = sitk.ReadImage(
        sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), useSeriesDetails=False)
    )
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1, -1, 1, 1]) @ affine
    array = sitk.GetArrayFromImage(image).T
    assert shows(array, affine, made.points)


@pytest.mark.skipif(CONVERTER is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("kind", CONVERTED)
def test_dcm2niix_finds_every_point(tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path / "in", seed=3)
    volumes, _ = convert(tmp_path)
    for image in made.images:
        for points in image.points:
            assert any(shows(array, affine, points) for array, affine in volumes)


def convert(folder: Path) -> tuple[list[tuple[Array, Array]], str]:
    """Every 3-D volume that the converter writes, with its affine; and what it says."""
    (folder / "out").mkdir()
    command = [str(CONVERTER), "-f", "%s_%e_%i_%j", "-o", str(folder / "out"), str(folder / "in")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    volumes = []
    for path in sorted((folder / "out").glob("*.nii")):
        image = nib.load(path)
        array = np.asarray(image.dataobj, dtype=float)
        array = array if array.ndim == 4 else array[..., None]
        volumes += [(array[..., n], image.affine) for n in range(array.shape[3])]
    return volumes, said


@pytest.mark.parametrize("kind", ["enhanced MR", "enhanced MR, shuffled", "enhanced CT"])
def test_highdicom_finds_every_point(tmp_path: Path, kind: str) -> None:
    """The converter mistakes frames in no order, so this is another reader."""
    import highdicom

    made = hostile_dicom.build(kind, tmp_path, seed=3)
    volume = highdicom.imread(tmp_path / "enhanced").get_volume()
    assert shows(volume.array, np.diag([-1, -1, 1, 1]) @ volume.affine, made.points)


@pytest.mark.parametrize("kind", ["tilted gantry", "uneven", "one slice", "PET START"])
def test_gdcm_finds_every_point_plane_by_plane(tmp_path: Path, kind: str) -> None:
    """For stacks that no affine fits; PET in the stored units."""
    made = hostile_dicom.build(kind, tmp_path, seed=3)
    planes = [sitk.ReadImage(path) for path in sorted(tmp_path.glob("IM*"))]
    scale = 80_000 / (4e8 * 2 ** (-3600 / 6586.2)) if kind == "PET START" else 1.0
    for place, expected in made.points:
        lps = np.array(place) * (-1, -1, 1)
        voxels = [plane.TransformPhysicalPointToContinuousIndex(lps) for plane in planes]
        nearest = int(np.argmin([abs(voxel[2]) for voxel in voxels]))
        voxel = np.rint(voxels[nearest]).astype(int)
        assert np.abs(voxels[nearest] - voxel).max() < 1e-3
        assert voxel[2] == 0
        value = planes[nearest][voxel.tolist()] * scale
        assert value == pytest.approx(expected, abs=made.images[0].tolerance)


@pytest.mark.skipif(CONVERTER is None, reason="dcm2niix is not installed")
def test_dcm2niix_sees_the_tilt(tmp_path: Path) -> None:
    """What it makes of it is moved by centimetres, so only the angle is compared."""
    hostile_dicom.build("tilted gantry", tmp_path / "in")
    assert "gantry tilt of -18 degrees" in convert(tmp_path)[1]


@pytest.mark.skipif(VALIDATOR is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("kind", VALID)
def test_an_independent_validator_has_no_complaint(tmp_path: Path, kind: str) -> None:
    hostile_dicom.build(kind, tmp_path)
    path = next(p for p in sorted(tmp_path.rglob("*")) if p.is_file())
    done = subprocess.run([str(VALIDATOR), str(path)], capture_output=True, text=True)
    errors = {line for line in done.stderr.splitlines() if line.startswith("Error")}
    # Older validators do not know Synthetic Data (0008,001C), which came with the 2022 standard.
    assert {line for line in errors if "(0x0008,0x001c)" not in line} == set()


@pytest.mark.parametrize("kind", hostile_dicom.KINDS)
def test_every_kind_says_what_must_happen(tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path)
    assert made.folder.exists()
    assert made.expect == hostile_dicom.EXPECTED[kind]
    assert (made.expect == "read") == bool(made.images)
    assert (made.expect == "read") != bool(made.reason)
    for image in made.images:
        assert consistent(image)


def consistent(image: Image) -> bool:
    """Whether the points of an image are those of its arrays."""
    if image.affine is None or not image.frames:
        return len(image.frames) <= len(image.points)
    return all(
        shows(array, image.affine, points)
        for array, points in zip(image.frames, image.points, strict=True)
    )


def test_the_seed_decides(tmp_path: Path) -> None:
    def content(made: Hostile) -> list[bytes]:
        return [p.read_bytes() for p in sorted(made.folder.rglob("*")) if p.is_file()]

    first = hostile_dicom.build("oblique", tmp_path / "a", seed=1)
    again = hostile_dicom.build("oblique", tmp_path / "b", seed=1)
    other = hostile_dicom.build("oblique", tmp_path / "c", seed=2)
    assert content(first) == content(again)
    assert not set(content(first)) & set(content(other))
    assert all(NAME.encode() in data for data in content(first))


def test_cohorts_hold_different_cases(tmp_path: Path) -> None:
    dicom = hostile_cohorts.cohort(tmp_path / "d", 7)
    nifti = hostile_cohorts.nifti_cohort(tmp_path / "n", 7)
    bids = hostile_cohorts.bids_dataset(tmp_path / "b", subjects=2, sessions=2)
    assert [case.lesion for case in dicom] == [n % 3 == 0 for n in range(6)] + [True]
    arrays = []
    for case, file in zip(dicom, nifti, strict=True):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(case.path))
        image, reference = sitk.ReadImage(names), nib.load(file.path)
        array = sitk.GetArrayFromImage(image).T[::-1, ::-1]
        assert np.array_equal(array, np.asarray(reference.dataobj))
        arrays.append(array.tobytes())
    assert len(set(arrays)) == 7
    assert len(bids) == 4
    assert all(case.path.with_name(case.path.name[:-7] + ".json").exists() for case in bids)
    assert len(list((tmp_path / "b").rglob("*.nii.gz"))) == 8
