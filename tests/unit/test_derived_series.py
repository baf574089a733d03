"""A derived DICOM series: valid, in its place, with the values it was given, and honest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_out_cases import FLAT, GRIDS, PRODUCER, RESAMPLED, TOOLS, errors, scan
from hostile_objects import NAME

from medgen import io
from medgen.errors import GeometryError, InputError
from medgen.io.dicom_out import Derivation, open_source, write_derived_series
from medgen.volume import Geometry, Volume

DENOISED = Derivation("denoised", 83, "Noise removed. Research use only.")
INPAINTED = Derivation("inpainted", 81, "Holes filled.", synthetic=True)
CASES = GRIDS | RESAMPLED | FLAT
needs_validator = pytest.mark.skipif(
    not (TOOLS / "dciodvfy").exists(), reason="dicom3tools is not installed"
)


def headers(folder: Path) -> list[Any]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def twice_as_fine(geometry: Geometry) -> Geometry:
    """Half the voxel along each axis, outer edges aligned."""
    affine = geometry.affine.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] = geometry.to_world([-0.25] * 3)
    return Geometry(tuple(2 * n for n in geometry.shape), affine)


@needs_validator
@pytest.mark.parametrize("kind", CASES)
def test_valid_and_where_the_scan_is(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path, CASES[kind])
    values = volume.voxels[0] * 1.1 + 0.3
    made = write_derived_series(
        tmp_path / "out", open_source(volume), PRODUCER, DENOISED, values, volume.geometry
    )
    assert len(made.paths) == (volume.geometry.shape[2] if volume.spatial_dims == 3 else 1)
    assert {error for path in made.paths for error in errors(path)} == set()
    step = (values.max() - values.min()) / 65535
    assert made.largest_error <= 0.51 * step + 1e-3
    if volume.spatial_dims == 3:
        back = io.read(tmp_path / "out")
        assert back.geometry.same_grid_as(volume.geometry, 0.01)
        assert np.abs(back.voxels[0] - values).max() <= made.largest_error + 1e-6


@needs_validator
@pytest.mark.parametrize("kind", ["oblique", "enhanced CT", "tilted gantry", "PET START"])
def test_a_finer_grid(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path)
    grid = twice_as_fine(volume.geometry)
    values = np.random.default_rng(0).uniform(-300, 900, grid.shape).astype(np.float32)
    source = open_source(volume)
    made = write_derived_series(tmp_path / "out", source, PRODUCER, DENOISED, values, grid)
    assert {error for path in made.paths for error in errors(path)} == set()
    back = io.read(tmp_path / "out")
    assert back.geometry.same_grid_as(grid, 0.01)
    assert np.abs(back.voxels[0] - values).max() <= made.largest_error + 1e-6
    # An independent reader puts a corner where the grid has it.
    names = [str(path) for path in made.paths]
    image = sitk.ReadImage(names)
    corner = image.TransformIndexToPhysicalPoint([int(n - 1) for n in image.GetSize()])
    last = np.array(grid.shape) - 1
    assert np.allclose(corner, grid.to_world(last) * [-1, -1, 1], atol=0.05)
    # Slices are cited that lie around each of the result's, and all of them by some.
    cited = [
        [i.ReferencedSOPInstanceUID for i in d.SourceImageSequence]
        for d in headers(tmp_path / "out")
    ]
    assert max(map(len, cited)) <= 3
    assert {uid for uids in cited for uid in uids} == set(source.instances)
    assert all(
        i.SpatialLocationsPreserved == "NO"
        for d in headers(tmp_path / "out")
        for i in d.SourceImageSequence
    )


@pytest.mark.parametrize("kind", ["oblique", "enhanced CT", "PET START", "big endian"])
def test_what_was_kept_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path)
    hole = np.zeros(volume.geometry.shape, bool)
    hole[8:14, 9:13, 2:5] = True
    scanned = volume.voxels[0]
    values = np.where(hole, scanned * 0.7 + 0.123, scanned).astype(np.float32)
    source = open_source(volume)
    made = write_derived_series(
        tmp_path / "out", source, PRODUCER, INPAINTED, values, volume.geometry, kept=~hole
    )
    back = io.read(tmp_path / "out").voxels[0]
    assert np.array_equal(back[~hole], scanned[~hole])
    slopes = [plane.rescale[0] if plane.rescale else 1.0 for plane in source.planes]
    assert np.abs(back - values).max() == pytest.approx(made.largest_error, abs=1e-3)
    assert made.largest_error <= 0.51 * max(1.0, *slopes)
    for d, plane in zip(headers(tmp_path / "out"), source.planes, strict=True):
        (item,) = d.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == plane.reference.instance_uid
        assert item.SpatialLocationsPreserved == "YES"


def test_it_says_what_it_is(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    source = open_source(volume)
    values, grid = volume.voxels[0], volume.geometry
    made = write_derived_series(tmp_path / "a", source, PRODUCER, INPAINTED, values, grid)
    original = pydicom.dcmread(next((tmp_path / "archive").rglob("IM*")))
    objects = headers(tmp_path / "a")
    assert len({d.SOPInstanceUID for d in objects}) == len(objects)
    for number, d in enumerate(objects, 1):
        assert list(d.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert (d.SyntheticData, d.ContentQualification) == ("YES", "RESEARCH")
        assert d.DerivationDescription == INPAINTED.text
        assert d.InstanceNumber == number
        assert d.SeriesInstanceUID == made.series_uid != original.SeriesInstanceUID
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert d[keyword].value == original[keyword].value
        made_by = d.ContributingEquipmentSequence[0]
        assert made_by.ContributionDescription == INPAINTED.text
        assert list(made_by.SoftwareVersions)[1] == "tiny 1.2.3"
        assert len(d.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(objects)
    assert str(NAME) not in str(made)


def test_only_what_was_made_is_synthetic(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    scan("oblique", tmp_path)
    for path in archive.rglob("IM*"):
        d = pydicom.dcmread(path)
        del d.SyntheticData
        d.save_as(path)
    volume = io.read(archive)
    for name, derivation in (("a", DENOISED), ("b", INPAINTED)):
        write_derived_series(
            tmp_path / name, open_source(volume), PRODUCER, derivation, volume.voxels[0],
            volume.geometry,
        )  # fmt: skip
    assert all("SyntheticData" not in d for d in headers(tmp_path / "a"))
    assert all(d.SyntheticData == "YES" for d in headers(tmp_path / "b"))


@needs_validator
def test_another_contrast_does_not_keep_the_echo_time(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    source = open_source(volume)
    source.acquisition.EchoTime = 12.5
    to_t2 = Derivation("synthetic t2", 84, "x", synthetic=True, acquired=False)
    to_ct = Derivation("synthetic ct", 84, "x", modality="CT", units="HU", acquired=False)
    for name, derivation in (("keeps", DENOISED), ("t2", to_t2), ("ct", to_ct)):
        made = write_derived_series(
            tmp_path / name, source, PRODUCER, derivation, volume.voxels[0], volume.geometry
        )
        assert {error for path in made.paths for error in errors(path)} == set()
    kept, t2, ct = (headers(tmp_path / name)[0] for name in ("keeps", "t2", "ct"))
    assert kept.EchoTime == 12.5 and t2.EchoTime is None
    assert (t2.Modality, t2.ScanningSequence) == ("MR", "RM")
    assert (ct.Modality, ct.RescaleType) == ("CT", "HU")
    assert len({kept.SeriesInstanceUID, t2.SeriesInstanceUID, ct.SeriesInstanceUID}) == 3


def test_the_same_result_is_the_same_series(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    source, values = open_source(volume), volume.voxels[0]
    uids = [
        write_derived_series(
            tmp_path / str(n), source, PRODUCER, DENOISED, changed, volume.geometry
        ).series_uid
        for n, changed in enumerate((values, values, values + 1))
    ]
    assert uids[0] == uids[1] != uids[2]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    source, values = open_source(volume), volume.voxels[0]
    sheared = volume.affine.copy()
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    with pytest.raises(GeometryError, match="sheared"):
        write_derived_series(
            tmp_path / "a", source, PRODUCER, DENOISED, values, Geometry(values.shape, sheared)
        )
    with pytest.raises(ValueError, match="finite"):
        write_derived_series(
            tmp_path / "a", source, PRODUCER, DENOISED, values * np.nan, volume.geometry
        )
    assert not (tmp_path / "a").exists()
    write_derived_series(tmp_path / "a", source, PRODUCER, DENOISED, values, volume.geometry)
    with pytest.raises(InputError, match="exists already"):
        write_derived_series(tmp_path / "a", source, PRODUCER, DENOISED, values, volume.geometry)
    with pytest.raises(InputError, match="comes from memory"):
        open_source(Volume.from_array(values, volume.affine))
