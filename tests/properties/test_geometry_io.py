"""A voxel stays at its place in the world through every file, whatever the orientation."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medgen import io
from medgen.volume import Geometry, Volume

SHAPE = (5, 4, 3)
TOLERANCE_MM = 1e-4
LPS = np.diag([-1.0, -1.0, 1.0])
ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
spacings = st.tuples(*[st.floats(0.05, 12)] * 3)
offsets = st.tuples(*[st.floats(-400, 400)] * 3)
angles = st.tuples(*[st.floats(-180, 180)] * 3)
shears = st.tuples(*[st.floats(-0.4, 0.4)] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 2, st.integers(2, 9))


def affine_of(
    orientation: NDArray[np.float64],
    spacing: tuple[float, ...],
    offset: tuple[float, ...],
    turn: tuple[float, ...] = (0, 0, 0),
    shear: tuple[float, ...] = (0, 0, 0),
) -> NDArray[np.float64]:
    sheared = np.eye(3)
    sheared[np.triu_indices(3, 1)] = shear
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
        @ orientation
        @ sheared
        @ np.diag(spacing)
    )
    affine[:3, 3] = offset
    return affine


def numbered(shape: tuple[int, ...]) -> NDArray[np.int16]:
    """Every voxel has its own value, so a swapped or mirrored axis cannot hide."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def by_value(volume: Volume) -> NDArray[np.float64]:
    """World position (mm) of each value, in the order of the values."""
    order = np.argsort(volume.voxels[0], axis=None)
    voxels = np.stack(np.unravel_index(order, volume.geometry.shape), axis=-1)
    return volume.geometry.to_world(voxels)


def assert_same_places(volume: Volume, again: Volume, tolerance: float = TOLERANCE_MM) -> None:
    assert np.array_equal(np.sort(volume.voxels, axis=None), np.sort(again.voxels, axis=None))
    assert np.abs(by_value(volume) - by_value(again)).max() <= tolerance


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: Geometry((1, 1, 1), np.block([[o, np.zeros((3, 1))], [np.zeros((1, 3)), 1]])).axis_codes)  # fmt: skip  # noqa: E501
def test_all_48_orientations_through_nifti_and_dicom(
    orientation: NDArray[np.float64], tmp_path: Path
) -> None:
    affine = affine_of(orientation, (0.7, 1.3, 4.0), (-80.5, 12.25, 33.0), turn=(8, -5, 12))
    volume = Volume.from_array(numbered(SHAPE), affine)
    io.write_nifti(tmp_path / "a.nii.gz", volume.voxels[0], volume.geometry)
    again = io.read(tmp_path / "a.nii.gz")
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.geometry.same_grid_as(volume.geometry, TOLERANCE_MM)
    assert again.geometry.axis_codes == volume.geometry.axis_codes
    io.write_dicom_series(tmp_path / "series", volume, seed="test")
    assert_same_places(volume, io.read(tmp_path / "series"))


@given(
    st.sampled_from(ORIENTATIONS), shapes, spacings, offsets, angles, shears,
    st.sampled_from([".nii", ".nii.gz"]), st.sampled_from(["image", "map", "label"]),
)  # fmt: skip
def test_sheared_and_oblique_grids_survive_nifti(
    orientation, shape, spacing, offset, turn, shear, ending, kind
) -> None:
    volume = Volume.from_array(
        numbered(shape), affine_of(orientation, spacing, offset, turn, shear)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        io.write_nifti(path, volume.voxels[0], volume.geometry, kind=kind)
        again = io.read(path, allow_constant=True)
        assert again.geometry.same_grid_as(volume.geometry, TOLERANCE_MM)
        assert_same_places(volume, again)
        header = nib.load(path).header
        assert header["sform_code"] > 0
        if header["qform_code"] > 0:  # programs may believe either form
            qform = Geometry(shape, header.get_qform())
            assert qform.same_grid_as(volume.geometry, TOLERANCE_MM)


@given(st.sampled_from(ORIENTATIONS), shapes, spacings, offsets)
def test_upright_grids_get_both_forms(orientation, shape, spacing, offset) -> None:
    geometry = Geometry(shape, affine_of(orientation, spacing, offset))
    with tempfile.TemporaryDirectory() as folder:
        path = io.write_nifti(Path(folder) / "a.nii", numbered(shape), geometry)
        header = nib.load(path).header
        assert header["sform_code"] > 0
        assert header["qform_code"] > 0


@given(st.sampled_from(ORIENTATIONS), spacings, offsets, angles, st.booleans())
def test_qform_only_files_agree_with_nibabel(orientation, spacing, offset, turn, big) -> None:
    affine = affine_of(orientation, spacing, offset, turn)
    header = nib.Nifti1Header(endianness=">" if big else "<")
    image = nib.Nifti1Image(numbered(SHAPE), None, header)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nii"
        nib.save(image, path)
        volume = io.read(path)
        reference = nib.load(path)
        assert reference.header.endianness == (">" if big else "<")
        assert volume.geometry.same_grid_as(Geometry(SHAPE, reference.affine), 1e-9)
        assert np.array_equal(volume.voxels[0], reference.get_fdata())


@given(st.sampled_from(ORIENTATIONS), spacings, offsets, angles)
def test_simpleitk_finds_written_voxels_at_the_same_place(
    orientation, spacing, offset, turn
) -> None:
    volume = Volume.from_array(numbered(SHAPE), affine_of(orientation, spacing, offset, turn))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nii.gz"
        io.write_nifti(path, volume.voxels[0], volume.geometry)
        image = sitk.ReadImage(str(path))
        for voxel in [(0, 0, 0), (4, 3, 2), (1, 3, 0), (4, 0, 1)]:
            place = LPS @ image.TransformIndexToPhysicalPoint(voxel)
            # ITK makes direction cosines exactly orthogonal, which moves float32 ones a little.
            assert np.abs(place - volume.geometry.to_world(voxel)).max() <= 1e-3
            assert image[voxel] == volume.voxels[(0, *voxel)]


@settings(max_examples=15)
@given(st.sampled_from(ORIENTATIONS), spacings, offsets, angles, st.booleans())
def test_dicom_series_agree_with_simpleitk(orientation, spacing, offset, turn, floats) -> None:
    values = numbered(SHAPE) if not floats else numbered(SHAPE) * 0.37 - 5
    volume = Volume.from_array(values, affine_of(orientation, spacing, offset, turn))
    with tempfile.TemporaryDirectory() as folder:
        io.write_dicom_series(Path(folder) / "s", volume, seed="test")
        again = io.read(Path(folder) / "s")
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(Path(folder) / "s")))
        image = reader.Execute()
    assert np.abs(by_value(again) - by_value(volume)).max() <= TOLERANCE_MM
    # Both sort along the normal, so the arrays can be compared as they are.
    assert np.allclose(sitk.GetArrayFromImage(image).T, again.voxels[0], atol=1e-4)
    for voxel in [(0, 0, 0), (4, 3, 2), (1, 3, 0), (4, 0, 1)]:
        place = LPS @ image.TransformIndexToPhysicalPoint(voxel)
        assert np.abs(place - again.geometry.to_world(voxel)).max() <= 1e-3


@given(st.sampled_from(ORIENTATIONS), spacings, offsets, angles, st.booleans())
def test_flat_images_keep_their_plane(orientation, spacing, offset, turn, trailing) -> None:
    affine = affine_of(orientation, spacing, offset, turn)
    stored = numbered((6, 5, 1)) if trailing else numbered((6, 5))
    with tempfile.TemporaryDirectory() as folder:
        image = nib.Nifti1Image(stored, affine)
        image.set_qform(None, code=0)
        nib.save(image, Path(folder) / "in.nii")
        volume = io.read(Path(folder) / "in.nii")
        assert volume.voxels.shape == (1, 6, 5)
        assert volume.geometry.same_grid_as(Geometry((6, 5), affine), TOLERANCE_MM)
        io.write_nifti(
            Path(folder) / "out.nii", volume.voxels[0], volume.geometry, like=volume, kind="map"
        )
        written = nib.load(Path(folder) / "out.nii")
        assert written.shape == stored.shape
        assert_same_places(volume, io.read(Path(folder) / "out.nii"))
