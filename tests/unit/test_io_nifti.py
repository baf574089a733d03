"""NIfTI: what is read, what is refused in one clear sentence, and what is written."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medgen import io
from medgen.errors import GeometryError, InputError, MedgenError
from medgen.volume import Geometry, Volume

SHAPE = (6, 5, 4)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])
BUNDLED = Path(nib.__file__).parent / "tests" / "data"


def values(shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def save(path: Path, array: np.ndarray, affine: Any = AFFINE, **header: Any) -> Path:
    image = nib.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4", ">f8"]
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_type_and_byte_order(tmp_path: Path, dtype: str, ending: str) -> None:
    array = values(dtype=np.dtype(dtype).newbyteorder("="))
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    nib.save(nib.Nifti1Image(array, AFFINE, header), tmp_path / f"a{ending}")
    volume = io.read(tmp_path / f"a{ending}")
    kind = np.dtype(dtype).newbyteorder("=")
    assert volume.voxels.dtype == (np.float32 if kind.kind == "f" else kind)
    assert volume.voxels.dtype.isnative
    assert np.array_equal(volume.voxels[0], array)
    assert volume.provenance.format == "nifti"
    assert volume.provenance.sources == (str(tmp_path / f"a{ending}"),)


def test_scale_factor(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", values(dtype=np.int16))
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", 0.25, -7.5)  # scl_slope, scl_inter
    path.write_bytes(raw)
    volume = io.read(path)
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels[0], values() * 0.25 - 7.5)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_scale_factor_without_meaning_is_none(tmp_path: Path, slope: float) -> None:
    path = save(tmp_path / "a.nii", values(dtype=np.int16))
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", slope, 5.0)
    path.write_bytes(raw)
    volume = io.read(path)
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels[0], values())


def test_scale_factor_of_one_frame(tmp_path: Path) -> None:
    stack = values((*SHAPE, 3), np.int16)
    path = save(tmp_path / "a.nii", stack)
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", 2.0, 1.0)
    path.write_bytes(raw)
    assert np.array_equal(io.read(path, frame=2).voxels[0], stack[..., 2] * 2.0 + 1)


@pytest.mark.parametrize("extra", [(3,), (1, 3), (1, 1, 3)])
def test_four_dimensions_need_a_frame(tmp_path: Path, extra: tuple[int, ...]) -> None:
    if len(extra) > 1:
        path = save(tmp_path / "a.nii.gz", values((*SHAPE, *extra)))
        with pytest.raises(InputError, match="dimensions"):
            io.read(path)
        return
    stack = values((*SHAPE, *extra))
    path = save(tmp_path / "a.nii.gz", stack)
    with pytest.raises(InputError, match="holds 3 volumes") as caught:
        io.read(path)
    assert "--frame 0 to --frame 2" in str(caught.value.hint)
    for frame in range(3):
        assert np.array_equal(io.read(path, frame=frame).voxels[0], stack[..., frame])
    for frame in (-1, 3):
        with pytest.raises(InputError, match=f"no frame {frame}"):
            io.read(path, frame=frame)


@pytest.mark.parametrize("trailing", [(1,), (1, 1), (1, 1, 1)])
def test_trailing_ones_are_no_dimension(tmp_path: Path, trailing: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nii", values((*SHAPE, *trailing)))
    assert io.read(path).voxels.shape == (1, *SHAPE)
    assert io.read(path, frame=0).voxels.shape == (1, *SHAPE)
    with pytest.raises(InputError, match="no frame 1"):
        io.read(path, frame=1)


def test_a_slice_over_time(tmp_path: Path) -> None:
    stack = values((6, 5, 1, 4))
    path = save(tmp_path / "a.nii", stack)
    volume = io.read(path, frame=3)
    assert volume.voxels.shape == (1, 6, 5)
    assert np.array_equal(volume.voxels[0], stack[:, :, 0, 3])


def test_colour(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for number, name in enumerate("RGB"):
        rgb[name] = values(dtype=np.uint8) + number
    volume = io.read(save(tmp_path / "a.nii.gz", rgb))
    assert volume.voxels.shape == (3, *SHAPE)
    assert np.array_equal(volume.voxels[2], rgb["B"])


def test_nifti_2(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(values(), AFFINE), tmp_path / "a.nii.gz")
    volume = io.read(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.voxels[0], values())
    assert np.array_equal(volume.affine, AFFINE)


def test_content_decides_and_not_the_ending(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", values())
    zipped = save(tmp_path / "a.nii.gz", values())
    for source, name in ((plain, "b.nii.gz"), (zipped, "b.nii"), (zipped, "scan")):
        (tmp_path / name).write_bytes(source.read_bytes())
        assert np.array_equal(io.read(tmp_path / name).voxels[0], values())


def test_sform_comes_first_and_disagreement_is_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    image.set_qform(moved, code=1)
    image.set_sform(AFFINE, code=2)
    nib.save(image, tmp_path / "a.nii")
    assert np.array_equal(io.read(tmp_path / "a.nii").affine, AFFINE)
    assert "disagree by up to 5 mm" in io.describe(tmp_path / "a.nii")[0]["problems"][0]


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000), ("micron", 0.001), ("mm", 1)])
def test_units_become_millimetres_and_go_back(tmp_path: Path, unit: str, scale: float) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    volume = io.read(tmp_path / "a.nii")
    assert np.allclose(volume.affine[:3], AFFINE[:3] * scale)
    io.write_nifti(tmp_path / "b.nii", volume.voxels[0], volume.geometry, like=volume)
    again = nib.load(tmp_path / "b.nii")
    assert again.header.get_xyzt_units()[0] == unit
    assert np.allclose(again.affine, AFFINE)


@pytest.mark.parametrize("sform", [np.diag([2.0, 3, 0, 1]), np.diag([2.0, 3, 5, 1])])
def test_flat_image_without_a_third_axis(tmp_path: Path, sform: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", values((6, 5)), np.diag([2.0, 3, 5, 1]))
    raw = bytearray(path.read_bytes())
    raw[280:328] = sform[:3].astype("<f4").tobytes()
    path.write_bytes(raw)
    geometry = io.read(path).geometry
    assert geometry.spacing_mm == (2, 3)
    assert np.array_equal(geometry.affine[:, [0, 1, 3]], sform[:, [0, 1, 3]])
    assert geometry.affine[2, 2] > 0


# --- refusing --------------------------------------------------------------------------------


def nonfinite(path: Path) -> Path:
    array = values()
    array[0, 0, :2] = np.nan
    array[1, 1, 1] = np.inf
    return save(path, array)


def truncated(path: Path) -> Path:
    data = save(path, np.random.default_rng(0).random((20, 20, 20))).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


def with_bytes(data: bytes) -> Any:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


def no_codes(path: Path) -> Path:
    image = nib.Nifti1Image(values(), None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)
    return path


def patched(offset: int, data: bytes) -> Any:
    def write(path: Path) -> Path:
        plain = save(path.with_name("plain.nii"), values())
        raw = bytearray(plain.read_bytes())
        raw[offset : offset + len(data)] = data
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
        return path

    return write


def wrong_checksum(path: Path) -> Path:
    data = bytearray(save(path, values()).read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    return path


NAN = struct.pack("<f", np.nan)
HOSTILE = {
    "missing": ("a.nii.gz", lambda path: path, "there is no file"),
    "empty": ("a.nii.gz", with_bytes(b""), "0 bytes"),
    "text": ("a.nii.gz", with_bytes(b"subject,age\n1,34\n" * 40), "like NIfTI, but holds text"),
    "web page": ("a.nii", with_bytes(b"<!DOCTYPE html><html>"), "web page"),
    "zipped text": ("a.nii.gz", with_bytes(gzip.compress(b"hello" * 99)), "without a NIfTI"),
    "noise": ("a.nii", with_bytes(bytes(range(256)) * 4), "holds something else"),
    "unknown": ("a.xyz", with_bytes(b"hello"), "not an image that can be read"),
    "half a header": ("a.nii", with_bytes(b"\x5c\x01\0\0"), "named like NIfTI"),
    "truncated": ("a.nii", truncated, "damaged or incomplete"),
    "truncated gz": ("a.nii.gz", truncated, "damaged or incomplete"),
    "checksum": ("a.nii.gz", wrong_checksum, "damaged or incomplete"),
    "zeros": ("a.nii.gz", lambda p: save(p, np.zeros(SHAPE)), "is empty: every voxel is 0"),
    "constant": ("a.nii.gz", lambda p: save(p, values() // 300 + 7), "constant: every voxel is 7"),
    "nan": ("a.nii.gz", nonfinite, "2 NaN and 1 infinite of 120 voxels"),
    "no codes": ("a.nii.gz", no_codes, "does not say where its voxels are"),
    "singular": ("a.nii", patched(280, b"\0" * 48), "singular"),
    "collinear": ("a.nii", patched(280, np.ones((3, 4), "<f4").tobytes()), "singular"),
    "nan affine": ("a.nii.gz", patched(280, NAN * 12), "finite 4x4"),
    "negative size": ("a.nii", patched(42, struct.pack("<h", -6)), "a.nii"),
    "zero size": ("a.nii.gz", patched(42, struct.pack("<h", 0)), "a.nii"),
    "huge size": ("a.nii.gz", patched(42, struct.pack("<3h", 9999, 9999, 9999)), "promises"),
    "unknown type": ("a.nii", patched(70, struct.pack("<h", 12345)), "damaged"),
    "complex": ("a.nii", lambda p: save(p, values().astype(np.complex64)), "complex"),
    "six dimensions": ("a.nii", lambda p: save(p, values((2, 2, 2, 2, 2, 2))), "6 dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_files_get_one_clear_error(tmp_path: Path, case: str) -> None:
    name, make, words = HOSTILE[case]
    path = make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        io.read(path)
    assert words in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("case", HOSTILE)
def test_describe_tells_or_raises_a_clear_error(tmp_path: Path, case: str) -> None:
    name, make, _ = HOSTILE[case]
    path = make(tmp_path / name)
    try:
        facts = io.describe(path)
    except InputError:
        return
    assert len(facts) == 1
    if case in ("no codes", "singular", "collinear", "nan affine", "huge size", "truncated"):
        assert facts[0]["problems"]


@pytest.mark.parametrize("length", [1, 100, 347, 352, 400, 800])
def test_every_truncation_is_an_input_error(tmp_path: Path, length: int) -> None:
    for ending in (".nii", ".nii.gz"):
        whole = save(tmp_path / f"whole{ending}", np.random.default_rng(0).random(SHAPE))
        cut = tmp_path / f"cut{ending}"
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(InputError):
            io.read(cut)


def test_huge_image_can_be_refused_before_it_is_read(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 1024))
    header.set_data_dtype(np.float32)
    header.set_sform(AFFINE, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "huge.nii"
    with path.open("wb") as file:
        file.write(header.binaryblock + b"\0" * 4)
        file.truncate(352 + 4 * 1024**3)  # sparse: takes no space
    (facts,) = io.describe(path)
    assert facts["shape"] == (1024, 1024, 1024)
    assert facts["dtype"] == "float32"
    assert facts["problems"] == []


def test_masks_may_be_empty(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8))
    assert not io.read(path, allow_constant=True).voxels.any()


def test_series_is_for_dicom(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not DICOM"):
        io.read(save(tmp_path / "a.nii", values()), series="3")


# --- describing ------------------------------------------------------------------------------


def test_describe(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", values((*SHAPE, 3), np.int16))
    (facts,) = io.describe(path)
    assert facts == {
        "path": str(path), "kind": "nifti", "modality": None, "shape": SHAPE, "channels": 1,
        "frames": 3, "dtype": "int16", "spacing_mm": (2.0, 2.0, 3.0), "orientation": "LAS",
        "series_number": None, "series_uid": None, "transfer_syntax": None, "problems": [],
        "blocking": None,
    }  # fmt: skip


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "intent", "stored"),
    [
        ("map", np.float64, 1001, np.float32),
        ("map", np.uint8, 1001, np.float32),
        ("image", np.float64, 0, np.float32),
        ("image", np.int16, 0, np.int16),
        ("image", np.int64, 0, np.int32),
        ("label", np.bool_, 1002, np.uint8),
        ("label", np.int64, 1002, np.uint8),
    ],
)
def test_types_and_intents(tmp_path: Path, kind: Any, dtype: Any, intent: int, stored: Any) -> None:
    array = values(dtype=dtype)
    io.write_nifti(tmp_path / "a.nii.gz", array, Geometry(SHAPE, AFFINE), kind=kind)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == stored
    assert image.header["intent_code"] == intent
    assert np.array_equal(np.asanyarray(image.dataobj), array)
    assert image.header["scl_slope"] == 1 or np.isnan(image.header["scl_slope"])
    assert np.array_equal(image.affine, AFFINE)


def test_many_labels_get_a_wider_type(tmp_path: Path) -> None:
    array = values(dtype=np.int32)
    array[0, 0, 0] = 2035
    io.write_nifti(tmp_path / "a.nii.gz", array, Geometry(SHAPE, AFFINE), kind="label")
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint16


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 1), (2, 2)])
def test_form_codes_of_the_input_are_kept(tmp_path: Path, codes: tuple[int, int]) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.set_sform(AFFINE, codes[0])
    image.set_qform(AFFINE, codes[1])
    nib.save(image, tmp_path / "a.nii")
    volume = io.read(tmp_path / "a.nii")
    io.write_nifti(tmp_path / "b.nii", volume.voxels[0], volume.geometry, like=volume)
    header = nib.load(tmp_path / "b.nii").header
    assert header["sform_code"] == (codes[0] or codes[1])
    assert header["qform_code"] == (codes[1] or codes[0])


def test_shear_is_left_to_the_sform(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 0.8
    io.write_nifti(tmp_path / "a.nii", values(), Geometry(SHAPE, affine))
    header = nib.load(tmp_path / "a.nii").header
    assert (header["sform_code"], header["qform_code"]) == (2, 0)
    assert np.allclose(header.get_sform(), affine)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        io.write_nifti(tmp_path / name / "x.nii.gz", values(), Geometry(SHAPE, AFFINE))
    assert (tmp_path / "a/x.nii.gz").read_bytes() == (tmp_path / "b/x.nii.gz").read_bytes()


def test_writing_refuses(tmp_path: Path) -> None:
    geometry = Geometry(SHAPE, AFFINE)
    path = io.write_nifti(tmp_path / "a.nii", values(), geometry)
    with pytest.raises(InputError, match="exists already"):
        io.write_nifti(path, values(), geometry)
    io.write_nifti(path, values() + 1, geometry, overwrite=True)
    assert io.read(path).voxels.max() == values().max() + 1
    with pytest.raises(GeometryError, match="does not fit"):
        io.write_nifti(tmp_path / "b.nii", values((5, 6, 4)), geometry)
    with pytest.raises(InputError, match=r"must end in \.nii"):
        io.write_nifti(tmp_path / "b.png", values(), geometry)
    with pytest.raises(MedgenError, match="1 voxels that are not numbers"):
        broken = values()
        broken[0, 0, 0] = np.nan
        io.write_nifti(tmp_path / "b.nii", broken, geometry, kind="map")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]


def test_a_header_that_would_misplace_voxels_is_not_written(tmp_path: Path, monkeypatch) -> None:
    true_set = nib.Nifti1Image.set_sform

    def bad_set(self: Any, affine: np.ndarray, code: int) -> None:
        true_set(self, affine @ np.diag([1, 1, 1.001, 1]), code)

    monkeypatch.setattr(nib.Nifti1Image, "set_sform", bad_set)
    with pytest.raises(GeometryError, match="would misplace"):
        io.write_nifti(tmp_path / "a.nii.gz", values(), Geometry(SHAPE, AFFINE))
    assert list(tmp_path.iterdir()) == []


def test_grids_far_from_the_origin_are_written(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] = 4321.987654
    volume = Volume.from_array(values(), affine)
    io.write_nifti(tmp_path / "a.nii", volume.voxels[0], volume.geometry)
    assert io.read(tmp_path / "a.nii").geometry.same_grid_as(volume.geometry, 1e-3)


# --- nibabel's own files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("anatomical.nii", None),
        ("standard.nii.gz", None),
        ("reoriented_anat_moved.nii", None),
        ("example4d.nii.gz", 1),
        ("example_nifti2.nii.gz", 0),
        ("functional.nii", 19),
    ],
)
def test_nibabels_files(name: str, frame: int | None) -> None:
    if not (BUNDLED / name).exists():
        pytest.skip("this nibabel came without its test files")
    volume = io.read(BUNDLED / name, frame=frame)
    reference = nib.load(BUNDLED / name)
    data = reference.get_fdata()
    assert np.allclose(volume.voxels[0], data if frame is None else data[..., frame], rtol=1e-6)
    assert np.array_equal(volume.affine, reference.affine)
    assert volume.geometry.axis_codes == "".join(nib.aff2axcodes(reference.affine))


def test_nibabels_file_with_nans() -> None:
    path = BUNDLED / "resampled_anat_moved.nii"
    if not path.exists():
        pytest.skip("this nibabel came without its test files")
    with pytest.raises(InputError, match="153 NaN"):
        io.read(path)


@pytest.mark.parametrize("stored", ["float64", "scaled int16", "scaled float32", "a frame of 4-D"])
def test_what_did_not_change_is_stored_as_it_was(tmp_path: Path, stored: str) -> None:
    """Reading rounds float64 and scaled integers; a changed copy of the file must not."""
    numbers = np.random.default_rng(0)
    values = numbers.normal(300, 100, (8, 9, 10))
    affine = np.diag([2.0, 2, 3, 1])
    frame = None
    if stored == "float64":
        image = nib.Nifti1Image(values, affine)
    elif stored == "scaled float32":
        image = nib.Nifti1Image(values.astype(np.float32), affine)
        image.header.set_slope_inter(0.3, 7)
    else:
        whole = values.astype(np.int16)
        if stored == "a frame of 4-D":
            whole, frame = np.stack([whole, whole[::-1]], -1), 1
        image = nib.Nifti1Image(whole, affine)
        image.header.set_slope_inter(0.1234567, -3)
    nib.save(image, tmp_path / "scan.nii.gz")
    source = nib.load(tmp_path / "scan.nii.gz")
    truth = source.get_fdata() if frame is None else source.get_fdata()[..., frame]
    scan = io.read(tmp_path / "scan.nii.gz", frame=frame)
    changed = np.zeros(scan.geometry.shape, bool)
    changed[2:4, 3:5, 4:6] = True
    array = scan.voxels[0].copy()
    array[changed] += 10
    path = tmp_path / "changed.nii.gz"
    io.write_changed(path, array, changed, scan.geometry, like=scan)
    again = nib.load(path)
    assert again.get_data_dtype() == source.get_data_dtype()
    np.testing.assert_array_equal(again.get_fdata()[~changed], truth[~changed])
    np.testing.assert_allclose(again.get_fdata()[changed], truth[changed] + 10, atol=0.07)
    np.testing.assert_array_equal(again.affine, source.affine)
    # Other changes, or a source that is gone: the array as it is.
    for other, gone in ((array + 1, False), (array, True)):
        if gone:
            (tmp_path / "scan.nii.gz").unlink()
        io.write_changed(tmp_path / f"{gone}.nii.gz", other, changed, scan.geometry, like=scan)
        np.testing.assert_array_equal(io.read(tmp_path / f"{gone}.nii.gz").voxels[0], other)
