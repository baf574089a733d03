"""Real scans from real scanners, against conversions and readers that are not ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medgen import io
from medgen.errors import InputError
from medgen.volume import Geometry, Volume


@pytest.fixture(scope="module")
def dicom(data_dir: Path) -> Path:
    folder = data_dir / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no real DICOM at {folder}")
    return folder


def compare(volume: Volume, reference: Path, frame: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Values of both at the reference's voxels, whose places must be voxels of the volume too."""
    image = nib.load(reference)
    data = image.get_fdata() if frame is None else image.get_fdata()[..., frame]
    voxels = np.stack(np.indices(data.shape), axis=-1)
    found = volume.geometry.to_voxel(Geometry(data.shape, image.affine).to_world(voxels))
    nearest = np.rint(found).astype(int)
    spacing = volume.geometry.spacing_mm
    assert np.abs((found - nearest) * spacing).max() <= 1e-4
    return volume.voxels[0][tuple(np.moveaxis(nearest, -1, 0))], data


@pytest.mark.parametrize("frame", range(4))
def test_siemens_enhanced_over_several_files(dicom: Path, frame: int) -> None:
    volume = io.read(dicom / "enhanced_mr" / "Siemens", frame=frame)
    name = "Siemens_REST1_w_SMS_PF7-8_6.nii"
    ours, reference = compare(volume, dicom / "enhanced_mr_reference_nifti" / name, frame)
    assert np.array_equal(ours, reference)


def test_philips_enhanced_with_magnitude_and_field_map(dicom: Path) -> None:
    path = dicom / "enhanced_mr" / "Philips" / "IM_0027_fMAP.dcm"
    folder = dicom / "enhanced_mr_reference_nifti"
    with pytest.raises(InputError, match="holds 2 volumes"):
        io.read(path)
    # The converter multiplies magnitudes by the vendor's private "precise" scale, we do not.
    ours, reference = compare(io.read(path, frame=0), folder / "Philips_WIP_B0_NS_801_e1.nii", None)
    assert np.corrcoef(ours.ravel(), reference.ravel())[0, 1] > 1 - 1e-9
    ours, reference = compare(
        io.read(path, frame=1), folder / "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii", None
    )
    assert np.abs(ours - reference).max() < 0.01  # Hz, of +- 500


def test_siemens_enhanced_agrees_with_highdicom(dicom: Path) -> None:
    import highdicom

    path = dicom / "enhanced_mr" / "Siemens" / "XA10" / "6_1.dcm"
    reference = highdicom.imread(path).get_volume(apply_real_world_transform=False)
    volume = io.read(path)
    # highdicom's axes are (slice, row, column) and LPS.
    centre = [1, 2, 3]
    place = reference.map_indices_to_reference(np.array([[3, 2, 1]]))[0] * (-1, -1, 1)
    found = volume.geometry.to_voxel(place)
    flipped = not np.allclose(found, centre, atol=1e-3)
    array = reference.array[::-1] if flipped else reference.array
    if flipped:
        assert np.allclose(found, [1, 2, volume.geometry.shape[2] - 1 - 3], atol=1e-3)
    assert np.array_equal(volume.voxels[0], array.T)


def test_ct_in_jpeg_2000_agrees_with_simpleitk(dicom: Path) -> None:
    folder = dicom / "ct_jpeg2000_series"
    volume = io.read(folder)
    assert volume.provenance.modality == "CT"
    assert volume.provenance.units == "HU"
    files = sorted(
        folder.iterdir(),
        key=lambda p: pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2],
    )
    image = sitk.ReadImage([str(file) for file in files])
    assert np.array_equal(sitk.GetArrayFromImage(image).T, volume.voxels[0])
    for voxel in [(0, 0, 0), (511, 0, 11), (100, 400, 5)]:
        place = np.array(image.TransformIndexToPhysicalPoint(voxel)) * (-1, -1, 1)
        assert np.abs(place - volume.geometry.to_world(voxel)).max() <= 1e-3


def converted(folder: Path, target: Path) -> Path:
    """What dcm2niix makes of a folder: one NIfTI file."""
    dcm2niix = pytest.importorskip("dcm2niix")
    target.mkdir()
    subprocess.run(
        [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "x", "-o", str(target), str(folder)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (found,) = target.glob("*.nii")
    return found


@pytest.mark.parametrize("frame", range(2))
def test_siemens_mosaic_agrees_with_dcm2niix(dicom: Path, tmp_path: Path, frame: int) -> None:
    volume = io.read(dicom / "mr_siemens_mosaic", frame=frame)
    assert volume.geometry.shape == (72, 72, 5)
    reference = converted(dicom / "mr_siemens_mosaic", tmp_path / "nifti")
    ours, theirs = compare(volume, reference, frame)
    assert np.array_equal(ours, theirs)
    assert volume.provenance.details["dicom"]["frame_label"] == f"acquisition {frame + 1}"


@pytest.mark.parametrize("name", ["ct_jpeg2000_series", "enhanced_mr/Siemens"])
def test_real_series_agree_with_dcm2niix(dicom: Path, tmp_path: Path, name: str) -> None:
    reference = converted(dicom / name, tmp_path / "nifti")
    frames = nib.load(reference).shape[3:]
    for frame in range(frames[0]) if frames else [None]:
        ours, theirs = compare(io.read(dicom / name, frame=frame), reference, frame)
        assert np.array_equal(ours, theirs)


def test_the_whole_folder_lists_its_series(dicom: Path) -> None:
    with pytest.raises(InputError, match="holds 4 series") as caught:
        io.read(dicom)
    assert "REST1 w SMS PF7-8" in caught.value.message
    assert len(io.describe(dicom)) == 4
    # This series came without number and UID; its description still chooses it.
    assert io.read(dicom, series="CT Body 3.0").geometry.shape == (512, 512, 12)


def test_rules_find_their_facts_in_enhanced_objects_too(dicom: Path) -> None:
    archive = io.index_dicom(dicom)
    assert archive.set_aside == []
    facts = {image.header["manufacturer"]: image.header for image in archive.images}
    siemens, philips = facts["Siemens HealthCare GmbH"], facts["Philips Medical Systems"]
    assert (siemens["echo_time_ms"], siemens["slice_thickness_mm"]) == (30.0, 2.4)
    assert siemens["repetition_time_ms"] > 0
    assert (philips["echo_time_ms"], philips["slice_thickness_mm"]) == (1.52, 4.0)
    mosaic = facts["SIEMENS"]
    assert (mosaic["repetition_time_ms"], mosaic["slice_thickness_mm"]) == (2435.37, 3.0)


def test_every_brain_scan_is_read_and_written_in_place(data_dir: Path, tmp_path: Path) -> None:
    paths = sorted((data_dir / "brain").rglob("*.nii.gz"))
    assert paths
    for number, path in enumerate(paths):
        volume = io.read(path)
        reference = nib.load(path)
        data = reference.get_fdata(dtype=np.float32)
        assert np.array_equal(volume.voxels[0], data.reshape(volume.geometry.shape))
        assert np.allclose(volume.affine[:, [0, 1, 3]], reference.affine[:, [0, 1, 3]])
        (facts,) = io.describe(path)
        assert facts["shape"] == volume.geometry.shape
        assert facts["problems"] == [], path.name
        target = tmp_path / f"{number}.nii"
        io.write_nifti(target, volume.voxels[0], volume.geometry, like=volume, kind="map")
        written = nib.load(target)
        assert written.shape == reference.shape
        assert np.abs(written.affine - reference.affine)[:, [0, 1, 3]].max() <= 1e-4
        target.unlink()
