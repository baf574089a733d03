"""Voxels of the objects lie where those of the scan lie, whoever reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_out_cases import (
    FLAT,
    GRIDS,
    RESAMPLED,
    TOOLS,
    by_dcmqi,
    frames,
    scan,
    voxel_places,
    write_all,
)

from medgen import io
from medgen.volume import Volume

NEAR_MM = 0.01
# Sources that are single files, each frame of which says where it lies.
CITED = (GRIDS | RESAMPLED).keys() - {"zip with one name", "mosaic"}
needs_dcmqi = pytest.mark.skipif(
    not (TOOLS / "segimage2itkimage").exists(), reason="dcmqi is not installed"
)


def directions() -> np.ndarray:
    """Three independent directions; a map of the distance along each shows every displacement."""
    return np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("kind", GRIDS | RESAMPLED)
def test_a_map_of_places_comes_back_as_places(kind: str, tmp_path: Path) -> None:
    """The map holds a coordinate, so each pixel must say its own place."""
    volume = scan(kind, tmp_path, (GRIDS | RESAMPLED)[kind])
    places = voxel_places(volume)
    # There the slices themselves are a little off the even grid, and stay where they are.
    near = 0.015 if kind == "nearly even" else NEAR_MM
    for axis, direction in enumerate(directions()):
        values = np.tensordot(direction, places, 1).astype(np.float32)
        paths = write_all(
            volume, tmp_path / str(axis), values > values.mean(), values, ("seg", "pmap")
        )
        inside = covered(volume)
        for frame, seen in zip(frames(paths["pmap"]), inside, strict=True):
            expected = np.tensordot(direction, frame.places, 1)
            assert np.abs(frame.values - expected)[seen].max() < near
        # The nearest voxel of a resampled grid may lie half a voxel away along each axis.
        half = np.abs(direction @ volume.affine[:3, :3]).sum() / 2 if kind in RESAMPLED else 0.0
        for frame, seen in zip(frames(paths["seg"]), inside, strict=True):
            height = np.tensordot(direction, frame.places, 1) - values.mean()
            sure = (np.abs(height) > near + half) & seen
            assert np.array_equal(frame.values[sure] > 0, height[sure] > 0)


def covered(volume: Volume) -> np.ndarray:
    """Pixels ``(planes, rows, columns)`` that the volume's grid reaches, its last voxel excepted.

    A resampled grid holds every slice, but next to its border a pixel has one neighbour only.
    """
    slices = volume.provenance.details["dicom"].get("slices")
    if slices is None:
        depth = volume.geometry.shape[2] if volume.spatial_dims == 3 else 1
        return np.ones((depth, *volume.geometry.shape[1::-1]), bool)
    full = slices.to_slices(np.ones(volume.geometry.shape, np.float32), order=1)
    return full.transpose(2, 1, 0) > 1 - 1e-6


@pytest.mark.parametrize("kind", GRIDS)
def test_one_voxel_is_at_one_place_in_input_nifti_and_segmentation(
    kind: str, tmp_path: Path
) -> None:
    import hostile_dicom

    archive = hostile_dicom.build(kind, tmp_path / "archive")
    volume = io.read(archive.folder, frame=GRIDS[kind])
    for number, (place, value) in enumerate(archive.images[0].points[GRIDS[kind] or 0][-3:]):
        voxel = tuple(np.rint(volume.geometry.to_voxel(place)).astype(int))
        if kind != "PET START":  # its truth is in SUV
            assert volume.voxels[(0, *voxel)] == pytest.approx(
                value, abs=archive.images[0].tolerance
            )
        mask = np.zeros(volume.geometry.shape, bool)
        mask[voxel] = True
        folder = tmp_path / str(number)
        path = write_all(volume, folder, mask, kinds=["seg"])["seg"]
        ((there,),) = [
            [frame.places[:, r, c] for r, c in np.argwhere(frame.values)]
            for frame in frames(path)
            if frame.values.any()
        ]
        image = nib.load(io.write_nifti(folder / "m.nii.gz", mask, volume.geometry, kind="label"))
        index = np.argwhere(np.asarray(image.dataobj))[0]
        nifti = image.affine @ [*index, *[0] * (3 - len(index)), 1]
        assert np.linalg.norm(there - place) < NEAR_MM
        assert np.linalg.norm(nifti[:3] - place) < NEAR_MM


@needs_dcmqi
@pytest.mark.parametrize("kind", ["orientation 05 up", "oblique", "anisotropic", "enhanced CT"])
def test_dcmqi_reads_the_same_voxels_at_the_same_places(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path)
    rng = np.random.default_rng(1)
    shape = volume.geometry.shape
    mask, scores = rng.random(shape) > 0.7, rng.random(shape, dtype=np.float32)
    paths = write_all(volume, tmp_path / "out", mask, scores)
    for tool, path, expected in (
        ("segimage2itkimage", paths["seg"], mask),
        ("paramap2itkimage", paths["pmap"], scores),
    ):
        image = by_dcmqi(tool, path, tmp_path / tool)
        assert image.GetSize() == shape
        for voxel in rng.integers(0, shape, (40, 3)).tolist():
            place = volume.geometry.to_world(voxel) * [-1, -1, 1]
            index = image.TransformPhysicalPointToContinuousIndex(place.tolist())
            nearest = [round(value) for value in index]
            off = np.array(image.TransformIndexToPhysicalPoint(nearest)) - place
            assert np.linalg.norm(off) < NEAR_MM
            assert image[nearest] == pytest.approx(float(expected[tuple(voxel)]), abs=0)


@pytest.mark.parametrize("kind", sorted(CITED))
def test_each_frame_cites_the_picture_that_lies_there(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path, (GRIDS | RESAMPLED)[kind])
    files = [p for p in (tmp_path / "archive").rglob("*") if p.is_file()]
    sources = [pydicom.dcmread(p, force=True) for p in files if p.name != "DICOMDIR"]
    places: dict[Any, Any] = {}
    for d in sources:
        if "PerFrameFunctionalGroupsSequence" in d:
            for number, own in enumerate(d.PerFrameFunctionalGroupsSequence, start=1):
                place = own.PlanePositionSequence[0].ImagePositionPatient
                places[d.SOPInstanceUID, number] = np.array(place, float)
        else:
            places[d.SOPInstanceUID, None] = np.array(d.ImagePositionPatient, float)
    paths = write_all(volume, tmp_path / "out", kinds=["seg", "pmap"])
    first = sources[0]
    for path in (paths["seg"], paths["pmap"]):
        written = pydicom.dcmread(path)
        cited = [frame.cited for frame in frames(path)]
        assert len(set(cited)) == len(cited)
        for frame in frames(path):
            assert np.linalg.norm(frame.origin - places[frame.cited]) < 1e-6
        (series,) = written.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == first.SeriesInstanceUID
        named = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
        assert sorted(named) == sorted({uid for uid, _ in cited})
        assert written.FrameOfReferenceUID == first.FrameOfReferenceUID


@pytest.mark.parametrize("kind", FLAT)
def test_a_picture_without_a_place_keeps_its_pixels(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path)
    rng = np.random.default_rng(2)
    mask = rng.random(volume.geometry.shape) > 0.5
    path = write_all(volume, tmp_path / "out", mask)["seg"]
    written = pydicom.dcmread(path)
    assert np.array_equal(written.pixel_array > 0, mask.T)
    assert "PlanePositionSequence" not in written.PerFrameFunctionalGroupsSequence[0]
    assert "FrameOfReferenceUID" not in written
