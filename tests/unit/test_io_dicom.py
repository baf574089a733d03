"""DICOM: series, zips, multi-frame objects, compression, and clear refusals without names."""

from __future__ import annotations

import importlib.util
import io as stdlib_io
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medgen import io
from medgen.errors import GeometryError, InputError, MedgenError
from medgen.io import dicom_archive
from medgen.volume import Volume

SHAPE = (7, 6, 5)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, -1.25, 0, 30], [0, 0, 3, -20], [0, 0, 0, 1]])
SECRET = "Doe^Jane"
OUTCOMES = Path(__file__).parents[2] / "benchmarks" / "dicom_outcomes.py"


def example() -> Volume:
    values = np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.uint16)
    return Volume.from_array(values, AFFINE)


def series(folder: Path, volume: Volume | None = None, **options: Any) -> list[Path]:
    return io.write_dicom_series(folder, volume or example(), **({"seed": "test"} | options))


def change(path: Path, edit: Callable[[Dataset], Any]) -> None:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


# --- classic series --------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    paths = series(tmp_path / "s", description="t1", series_number=7)
    volume = io.read(tmp_path / "s")
    assert np.array_equal(volume.voxels, example().voxels)
    assert volume.voxels.dtype == np.float32
    assert volume.geometry.same_grid_as(example().geometry)
    assert (volume.provenance.format, volume.provenance.modality) == ("dicom", "MR")
    details = volume.provenance.details["dicom"]
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    assert [uid for _, uid, _ in details["references"]] == uids
    (facts,) = io.describe(tmp_path / "s")
    assert facts == {
        "path": str(tmp_path / "s"), "kind": "dicom", "modality": "MR", "shape": SHAPE,
        "channels": 1, "frames": 1, "dtype": "uint16", "spacing_mm": (1.5, 1.25, 3.0),
        "orientation": "LPS", "series_number": "7", "series_uid": details["series_uid"],
        "study_uid": details["study_uid"], "part": 1, "body_part": None, "frame_labels": [],
        "missing_slices": 0,
        "series_description": "t1", "transfer_syntax": "Explicit VR Little Endian",
        "problems": [], "blocking": None,
    }  # fmt: skip


def test_written_series_say_that_they_are_synthetic_and_repeat(tmp_path: Path) -> None:
    first, again = series(tmp_path / "a"), series(tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    dataset = pydicom.dcmread(first[0])
    assert dataset[0x0008, 0x001C].value == "YES"
    assert dataset.ImageType[0] == "DERIVED"
    other = pydicom.dcmread(series(tmp_path / "c", description="t2")[0])
    assert other.StudyInstanceUID == dataset.StudyInstanceUID
    assert other.SeriesInstanceUID != dataset.SeriesInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_written_series_satisfy_an_independent_validator(tmp_path: Path) -> None:
    path = series(tmp_path / "s")[0]
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    # Older validators do not know Synthetic Data (0008,001C), which came with the 2022 standard.
    errors = [line for line in done.stderr.splitlines() if "Error" in line]
    assert [line for line in errors if "(0x0008,0x001c)" not in line] == []


def test_values_that_are_no_integers_come_back_by_rescaling(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE) * 1e-3
    series(tmp_path / "s", Volume.from_array(values, AFFINE))
    again = io.read(tmp_path / "s").voxels[0]
    assert np.abs(again - values).max() <= 0.51 * np.ptp(values) / 4095


def test_slices_are_sorted_by_place_and_not_by_name_or_number(tmp_path: Path) -> None:
    paths = series(tmp_path / "s")
    for name, path in zip("dbeac", paths, strict=True):
        change(path, lambda d, name=name: setattr(d, "InstanceNumber", ord(name)))
        path.rename(path.with_name(f"{name}.dcm"))
    assert np.array_equal(io.read(tmp_path / "s").voxels, example().voxels)


def test_one_file_of_a_series_is_a_flat_image(tmp_path: Path) -> None:
    path = series(tmp_path / "s")[2]
    volume = io.read(path)
    assert np.array_equal(volume.voxels[0], example().voxels[0, ..., 2])
    assert volume.geometry.axis_codes == "LP"
    place = example().geometry.to_world((3, 4, 2))
    assert np.allclose(volume.geometry.to_world((3, 4)), place)


def test_rescaling_differs_between_slices(tmp_path: Path) -> None:
    for number, path in enumerate(series(tmp_path / "s")):

        def edit(d: Dataset, number: int = number) -> None:
            d.RescaleSlope, d.RescaleIntercept = number + 0.5, -number

        change(path, edit)
    expected = example().voxels[0] * (np.arange(5) + 0.5) - np.arange(5)
    assert np.allclose(io.read(tmp_path / "s").voxels[0], expected)


def test_monochrome1_is_turned_round(tmp_path: Path) -> None:
    path = series(tmp_path / "s")[0]
    change(path, lambda d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"))
    assert np.array_equal(io.read(path).voxels[0], 65535 - example().voxels[0, ..., 0])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression(tmp_path: Path, syntax: str) -> None:
    for place, path in enumerate(series(tmp_path / "s")):
        dataset = pydicom.dcmread(path)
        if syntax == JPEG2000Lossless:
            _jpeg2000(dataset, example().voxels[0, ..., place])
        else:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    assert np.array_equal(io.read(tmp_path / "s").voxels, example().voxels)


def _jpeg2000(dataset: Dataset, slice_: np.ndarray) -> None:
    """With Pillow: pydicom has no encoder of its own for it."""
    import PIL.Image
    from pydicom.encaps import encapsulate

    buffer = stdlib_io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(slice_.T)).save(buffer, "JPEG2000", no_jp2=True)
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    series(tmp_path / "s" / "deep" / "er")
    (tmp_path / "s" / "README.txt").write_text("hello")
    (tmp_path / "s" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"garbage" * 50)
    (tmp_path / "s" / "report.pdf").write_bytes(b"%PDF")
    assert io.read(tmp_path / "s").voxels.shape == (1, *SHAPE)


# --- several series, frames ------------------------------------------------------------------


def test_several_series_are_listed_and_chosen(tmp_path: Path) -> None:
    series(tmp_path / "s" / "a", series_number=3, description="t1 mprage")
    flair = example().with_voxels(example().voxels + 1)
    series(tmp_path / "s" / "b", flair, series_number=11, description="flair")
    with pytest.raises(InputError) as caught:
        io.read(tmp_path / "s")
    for words in ("holds 2 series", "   3  MR", "t1 mprage", "  11  MR", "5 images", "flair"):
        assert words in caught.value.message
    assert "--series" in str(caught.value.hint)
    uid = io.describe(tmp_path / "s")[1]["series_uid"]
    for wanted in ("11", uid, uid[-8:], "Flair"):
        assert np.array_equal(io.read(tmp_path / "s", series=wanted).voxels, flair.voxels)
    with pytest.raises(InputError, match="has no series '4'"):
        io.read(tmp_path / "s", series="4")
    assert [d["series_number"] for d in io.describe(tmp_path / "s")] == ["3", "11"]


def test_series_with_one_number_are_chosen_by_uid(tmp_path: Path) -> None:
    for name in "ab":
        series(tmp_path / "s" / name, description=name)
    with pytest.raises(InputError, match="2 series called '1'") as caught:
        io.read(tmp_path / "s", series="1")
    assert "UID" in str(caught.value.hint)
    uid = io.describe(tmp_path / "s")[0]["series_uid"]
    assert io.read(tmp_path / "s", series=uid).provenance.details["dicom"]["series_uid"] == uid


def test_a_series_without_a_number_is_chosen_as_it_is_listed(tmp_path: Path) -> None:
    series(tmp_path / "s" / "a", description="a")
    other = example().with_voxels(example().voxels + 1)
    for path in series(tmp_path / "s" / "b", other, description="b"):
        header = pydicom.dcmread(path)
        header.SeriesNumber = None
        header.save_as(path)
    with pytest.raises(InputError, match=r"\n +- +MR"):
        io.read(tmp_path / "s")
    assert np.array_equal(io.read(tmp_path / "s", series="-").voxels, other.voxels)


def test_places_that_repeat_are_frames(tmp_path: Path) -> None:
    for frame in range(3):
        volume = example().with_voxels(example().voxels + frame)
        for path in series(tmp_path / "s" / str(frame), volume):

            def edit(d: Dataset, frame: int = frame) -> None:
                d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                d.InstanceNumber += 100 * (2 - frame)

            change(path, edit)
    with pytest.raises(InputError, match="holds 3 volumes") as caught:
        io.read(tmp_path / "s")
    assert "--frame 0 to --frame 2" in str(caught.value.hint)
    for frame in range(3):
        again = io.read(tmp_path / "s", frame=frame)
        assert np.array_equal(again.voxels, example().voxels + 2 - frame)
    with pytest.raises(InputError, match="no frame 3"):
        io.read(tmp_path / "s", frame=3)
    (facts,) = io.describe(tmp_path / "s")
    assert (facts["shape"], facts["frames"]) == (SHAPE, 3)
    (tmp_path / "s" / "1" / "slice_0002.dcm").unlink()
    with pytest.raises(GeometryError, match="between 2 and 3 images"):
        io.read(tmp_path / "s", frame=0)


# --- enhanced multi-frame --------------------------------------------------------------------


def enhanced(path: Path, volume: Volume, frames: int = 1) -> Path:
    """One object of all slices, in a shuffled order, with a rescale slope per frame."""
    folder = path.with_suffix(".parts")
    parts = [pydicom.dcmread(p) for p in series(folder, volume)]
    shutil.rmtree(folder)
    places = np.random.default_rng(1).permutation([(s, f) for s in range(5) for f in range(frames)])
    whole = parts[0]
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames = len(places)
    shared, whole.PerFrameFunctionalGroupsSequence = Dataset(), []
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    whole.SharedFunctionalGroupsSequence = [shared]
    for place, frame in places:
        own, position, content, value = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = parts[place].ImagePositionPatient
        content.DimensionIndexValues = [int(place) + 1, int(frame) + 1]
        value.RescaleSlope, value.RescaleIntercept = float(frame + 1), float(place)
        own.PlanePositionSequence, own.FrameContentSequence = [position], [content]
        own.PixelValueTransformationSequence = [value]
        whole.PerFrameFunctionalGroupsSequence.append(own)
    pixels = [parts[place].PixelData for place, _ in places]
    whole.PixelData = b"".join(pixels)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del whole[keyword]
    whole.save_as(path)
    return path


def test_enhanced_multiframe(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "e.dcm", example())
    volume = io.read(path)
    assert np.array_equal(volume.voxels, example().voxels + np.arange(5))
    assert volume.geometry.same_grid_as(example().geometry)
    references = volume.provenance.details["dicom"]["references"]
    assert sorted(number for _, _, number in references) == [1, 2, 3, 4, 5]


def test_enhanced_multiframe_with_several_volumes(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "e.dcm", example(), frames=3)
    with pytest.raises(InputError, match="holds 3 volumes"):
        io.read(path)
    for frame in range(3):
        expected = example().voxels * (frame + 1.0) + np.arange(5)
        assert np.array_equal(io.read(path, frame=frame).voxels, expected)


# --- zip -------------------------------------------------------------------------------------


def zipped(path: Path, files: list[Path], prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, prefix + file.name)
    return path


def test_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", series(tmp_path / "s"), prefix="a/b/")
    assert np.array_equal(io.read(path).voxels, example().voxels)
    assert io.describe(path)[0]["shape"] == SHAPE


def test_zip_with_names_that_lead_outside_writes_nothing(tmp_path: Path) -> None:
    files = series(tmp_path / "s")
    path = zipped(tmp_path / "s.zip", files, "../../../x/")
    before = sorted(tmp_path.rglob("*"))
    assert np.array_equal(io.read(path).voxels, example().voxels)
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_archive, "MAX_ZIP_BYTES", 10_000_000)
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(20_000_000))
    assert (tmp_path / "s.zip").stat().st_size < 100_000
    with pytest.raises(InputError, match="would unpack to"):
        io.read(tmp_path / "s.zip")


def test_zip_that_is_damaged_encrypted_or_empty(tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", series(tmp_path / "s"))
    data = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    locked = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := locked.find(mark, at + 1)) >= 0:
            locked[at + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    zipped(tmp_path / "empty.zip", [])
    zipped(tmp_path / "text.zip", [Path(__file__)])
    for name, words in (
        ("cut", "no readable"), ("locked", "encrypted"), ("text", "no readable"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            io.read(tmp_path / f"{name}.zip")
    with pytest.raises(InputError):
        io.read(tmp_path / "empty.zip")


# --- refusing --------------------------------------------------------------------------------


def shifted(step: tuple[float, float, float]) -> Callable[[list[Path]], None]:
    """Every slice is moved by its number times a step (mm)."""

    def edit(paths: list[Path]) -> None:
        for number, path in enumerate(paths):
            move = np.array(step) * number

            def moved(d: Dataset, move: np.ndarray = move) -> None:
                d.ImagePositionPatient = list(np.array(d.ImagePositionPatient, float) + move)

            change(path, moved)

    return edit


def each(keyword: str, value: Any, only: int | None = None) -> Callable[[list[Path]], None]:
    def edit(paths: list[Path]) -> None:
        for path in paths if only is None else [paths[only]]:
            change(path, lambda d: setattr(d, keyword, value))

    return edit


def without(keyword: str, only: int | None = None) -> Callable[[list[Path]], None]:
    def edit(paths: list[Path]) -> None:
        for path in paths if only is None else [paths[only]]:
            change(path, lambda d: d.__delattr__(keyword))

    return edit


def cut_pixels(paths: list[Path]) -> None:
    change(paths[3], lambda d: setattr(d, "PixelData", d.PixelData[:-20]))


HOSTILE: dict[str, tuple[Callable[[list[Path]], None], str]] = {
    "no files": (lambda paths: [p.unlink() for p in paths] and None, "no readable DICOM image"),
    "a slice is missing": (
        lambda paths: paths[2].unlink(), "1 slice is missing: between slices 2 and 3 of 4",
    ),
    "no pixel data": (without("PixelData"), "only 5 x no pixels"),
    "no pixel data in one": (without("PixelData", 2), "InstanceNumber 3 has no pixel data"),
    "short pixel data": (cut_pixels, "InstanceNumber 4 is damaged or incomplete"),
    "two sizes": (each("Rows", 5, only=1), "holds 2 series, and one is needed:\n +1/1"),
    "two spacings": (each("PixelSpacing", [2, 2], only=1), "holds 2 series, and one is needed"),
    "two directions": (
        each("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], only=4),
        "holds 2 series, and one is needed",
    ),
    "skewed axes": (each("ImageOrientationPatient", [1, 0, 0, 0.5, 1, 0]), "not at right angles"),
    "one without a place": (without("ImagePositionPatient", 1), "1 of 5 slices have no position"),
    "mosaic": (each("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "Siemens mosaic"),
    "only a report": (each("Modality", "SR"), "no image: only 5 x structured report"),
    "all zero": (
        lambda paths: [change(p, lambda d: setattr(d, "PixelData", bytes(84))) for p in paths]
        and None,
        "is empty: every voxel is 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_series_get_one_clear_error_that_names_nobody(tmp_path: Path, case: str) -> None:
    edit, words = HOSTILE[case]
    paths = series(tmp_path / "s")
    for path in paths:
        change(path, lambda d: d.__setattr__("PatientName", SECRET))
        change(path, lambda d: d.__setattr__("PatientID", "4711-0815"))
    edit(paths)
    for number, path in enumerate(p for p in paths if p.exists()):
        path.rename(path.with_name(f"{SECRET}_{number}.dcm"))
    with pytest.raises(InputError, match=words) as caught:
        io.read(tmp_path / "s")
    assert caught.value.exit_code == 2
    assert SECRET not in str(caught.value)
    assert "4711" not in str(caught.value)
    try:
        facts = io.describe(tmp_path / "s")
    except InputError:
        return
    assert SECRET not in str(facts)
    # The first two need the pixels; parts of a series are read one by one.
    if case not in ("short pixel data", "all zero") and not case.startswith("two "):
        assert facts[0]["problems"]


def test_provenance_and_description_name_nobody(tmp_path: Path) -> None:
    for path in series(tmp_path / "s"):

        def edit(d: Dataset) -> None:
            d.PatientName, d.PatientID, d.PatientBirthDate = SECRET, "4711", "19700101"
            d.InstitutionName, d.ReferringPhysicianName = "Secret Hospital", "Dr^Who"

        change(path, edit)
    text = f"{io.read(tmp_path / 's').provenance} {io.describe(tmp_path / 's')}"
    for secret in (SECRET, "4711", "19700101", "Hospital", "Who"):
        assert secret not in text


def test_a_slightly_uneven_series_is_fine(tmp_path: Path) -> None:
    paths = series(tmp_path / "s")
    shifted((0, 0, 0.02))(paths[2:])
    assert io.read(tmp_path / "s").voxels.shape == (1, *SHAPE)


def test_folder_of_other_images_says_so(tmp_path: Path) -> None:
    volume = example()
    io.write_nifti(tmp_path / "a.nii.gz", volume.voxels[0], volume.geometry)
    with pytest.raises(InputError, match="1 NIfTI or picture files"):
        io.read(tmp_path)


def test_writer_refuses(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    with pytest.raises(GeometryError, match="sheared"):
        series(tmp_path / "s", Volume.from_array(example().voxels[0], sheared))
    with pytest.raises(GeometryError, match="3-D"):
        series(tmp_path / "s", Volume.from_array(example().voxels[0, ..., 0], AFFINE))
    assert list(tmp_path.iterdir()) == []
    series(tmp_path / "s")
    with pytest.raises(InputError, match="exists already"):
        series(tmp_path / "s")
    series(tmp_path / "s", overwrite=True)


# --- pydicom's own files ---------------------------------------------------------------------

# name: voxels' shape, or words of the error
BUNDLED: dict[str, tuple[int, ...] | str] = {
    "CT_small.dcm": (1, 128, 128),  # its preamble poses as a TIFF
    "MR_small.dcm": (1, 64, 64),
    "MR_small_implicit.dcm": (1, 64, 64),
    "MR_small_bigendian.dcm": (1, 64, 64),
    "MR_small_RLE.dcm": (1, 64, 64),
    "MR_small_jp2klossless.dcm": (1, 64, 64),
    "MR_small_jpeg_ls_lossless.dcm": (1, 64, 64),
    "MR_small_padded.dcm": (1, 64, 64),
    "MR_small_expb.dcm": (1, 64, 64),
    "693_J2KI.dcm": (1, 512, 512),
    "J2K_pixelrep_mismatch.dcm": (1, 512, 512),
    "JPEGLSNearLossless_16.dcm": (1, 10, 50),
    "image_dfl.dcm": (1, 512, 512),
    "SC_rgb_jpeg_dcmtk.dcm": (3, 100, 100),
    "SC_rgb_rle_16bit.dcm": (3, 100, 100),
    "SC_rgb_small_odd.dcm": (3, 3, 3),
    "ExplVR_BigEnd.dcm": (3, 80, 60),
    "examples_palette.dcm": (3, 800, 350),
    "SC_rgb_rle_2frame.dcm": "holds 2 volumes",
    "examples_ybr_color.dcm": "holds 30 volumes",
    "MR_truncated.dcm": "damaged or incomplete",
    "JPEG2000-embedded-sequence-delimiter.dcm": "cannot be decoded",
    "SC_rgb_jpeg_gdcm.dcm": "no decoder is installed",
    "rtplan.dcm": "only 1 x radiotherapy plan",
    "rtdose.dcm": "only 1 x radiotherapy dose",
    "rtstruct.dcm": "only 1 x radiotherapy structure set",
    "test-SR.dcm": "only 1 x structured report",
    "liver_1frame.dcm": "only 1 x segmentation",
    "waveform_ecg.dcm": "only 1 x waveform",
    "no_meta.dcm": "no readable DICOM image",
    "badVR.dcm": "no image",
    "test1.json": "not an image that can be read",
}


@pytest.mark.parametrize("name", BUNDLED)
def test_pydicoms_files(name: str) -> None:
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip("this pydicom came without the file")
    expected = BUNDLED[name]
    try:
        volume = io.read(str(found))
    except MedgenError as error:
        if "no decoder is installed" in str(error) and expected == "no decoder is installed":
            return
        assert isinstance(error, InputError)
        assert isinstance(expected, str), error
        assert expected in error.message
        return
    # With more decoders installed, a file may become readable.
    if expected != "no decoder is installed":
        assert volume.voxels.shape == expected


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm"])
def test_pydicoms_files_agree_with_simpleitk(name: str) -> None:
    path = str(get_testdata_file(name, download=False))
    volume, image = io.read(path), sitk.ReadImage(path)
    reference = sitk.GetArrayFromImage(image)[0].T
    assert np.allclose(volume.voxels[0], reference)
    for voxel in [(0, 0, 0), (60, 0, 0), (0, 50, 0), (33, 44, 0)]:
        place = np.array(image.TransformIndexToPhysicalPoint(voxel)) * (-1, -1, 1)
        assert np.abs(place - volume.geometry.to_world(voxel[:2])).max() <= 1e-4


def test_pydicoms_folder_of_many_series() -> None:
    found = get_testdata_file("dicomdirtests/DICOMDIR", download=False)
    if found is None:
        pytest.skip("this pydicom came without the folder")
    folder = Path(str(found)).parent
    with pytest.raises(InputError, match="series, and one is needed") as caught:
        io.read(folder)
    assert len(io.describe(folder)) == 5
    assert "2 x localiser" in caught.value.message
    assert "4 x localiser by its name" in caught.value.message  # FAST LOCALIZER, one plane each
    for facts in io.describe(folder):
        if not facts["problems"]:
            volume = io.read(folder, series=facts["series_uid"])
            assert volume.geometry.shape == facts["shape"]


def test_every_file_of_pydicom_is_read_or_refused() -> None:
    """The committed table of benchmarks/dicom_outcomes.py lists what becomes of each."""
    spec = importlib.util.spec_from_file_location("dicom_outcomes", OUTCOMES)
    assert spec is not None
    assert spec.loader is not None
    outcomes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(outcomes)
    files = outcomes.shipped_with_pydicom()
    assert len(files) > 150
    results = [outcomes.outcome(path) for path in files]
    crashed = [
        (p.name, why) for p, (how, why) in zip(files, results, strict=True) if how == "crash"
    ]
    assert crashed == []
    assert all(why for _, why in results)
    assert sum(how == "read" for how, _ in results) > 60
