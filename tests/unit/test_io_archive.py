"""Archives: walking by header, zips, DICOMDIR, grouping, and what is set aside and why."""

from __future__ import annotations

import contextlib
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_dicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from medgen import io
from medgen.errors import GeometryError, InputError
from medgen.io import dicom_archive, dicom_files
from medgen.io.dicom_header import read_plain_header
from medgen.io.dicom_kinds import set_aside
from medgen.io.walk import Location, opened
from medgen.volume import Volume

SHAPE = (6, 5, 4)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, -1.25, 0, 30], [0, 0, 3, -20], [0, 0, 0, 1]])


def example(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Volume:
    values = np.random.default_rng(seed).integers(0, 3000, shape).astype(np.uint16)
    return Volume.from_array(values, AFFINE)


def series(folder: Path, volume: Volume | None = None, **options: Any) -> list[Path]:
    return io.write_dicom_series(folder, volume or example(), **({"seed": "test"} | options))


def change(path: Path, edit: Callable[[Dataset], Any]) -> None:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def put(**values: Any) -> Callable[[Dataset], None]:
    def edit(d: Dataset) -> None:
        for keyword, value in values.items():
            setattr(d, keyword, value)

    return edit


def other_uid(d: Dataset) -> None:
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()


# --- headers ---------------------------------------------------------------------------------


def test_the_quick_way_to_a_header_gives_what_pydicom_gives() -> None:
    root = Path(str(get_testdata_file("CT_small.dcm"))).parent
    quick = 0
    for path in sorted(set(root.rglob("*.dcm")) - {root / "badVR.dcm"}):  # damaged values go
        try:
            with path.open("rb") as stream:
                plain = read_plain_header(stream, dicom_files._WANTED)
        except EOFError:
            assert "truncated" in path.name
            continue
        if plain is None:
            continue
        reference = pydicom.dcmread(path, stop_before_pixels=True)
        dicom_files._complete(reference)
        for element in plain.header:
            assert element.value == reference[element.tag].value, (path.name, element.tag)
        missing = [t for t in dicom_files._WANTED.tags if t in reference and t not in plain.header]
        assert missing == [], path.name
        assert plain.transfer_syntax == reference.file_meta.TransferSyntaxUID
        quick += 1
    assert quick > 50


def test_no_value_of_a_tag_reaches_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """pydicom quotes values that break the rules of their type."""
    for path in series(tmp_path):
        secret = b"4711" * 40
        data = path.read_bytes().replace(
            b"LO\x0a\x00SYNTHETIC ", b"LO" + len(secret).to_bytes(2, "little") + secret
        )
        assert secret in data
        path.write_bytes(data)
    with caplog.at_level("DEBUG"):
        archive = io.index_dicom(tmp_path)
        io.read(tmp_path)
    assert len(archive.images) == 1
    assert "4711" not in caplog.text
    assert not recwarn.list


def test_the_patients_number_never_stays_in_a_header(tmp_path: Path) -> None:
    for path in series(tmp_path):
        change(path, put(PatientID="4711", PatientName="Doe^Jane"))
    with dicom_archive.Zips() as zips:
        for instance in dicom_archive.instances(tmp_path, zips):
            assert "4711" not in str(instance.header)
            assert "Doe" not in str(instance.header)
            assert len(instance.patient_key) == 64


# --- zips ------------------------------------------------------------------------------------


def packed(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_hostile_zip_does_not_hide_the_rest_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "a")
    packed(tmp_path / "bomb.zip", [("x", bytes(5_000_000))])
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    monkeypatch.setattr(dicom_archive, "MAX_ZIP_BYTES", 1_000_000)
    archive = io.index_dicom(tmp_path)
    assert len(archive.images) == 1
    reasons = [aside.reason for aside in archive.set_aside]
    assert any("would unpack to" in reason for reason in reasons)
    assert any("damaged zip" in reason for reason in reasons)
    assert not any(str(tmp_path) in reason for reason in reasons)
    assert np.array_equal(io.read(tmp_path).voxels, example().voxels)


def test_a_zip_that_shrinks_too_well_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_archive, "_RATIO_MATTERS_BYTES", 1_000_000)
    path = packed(tmp_path / "a.zip", [(f"{n}.dcm", bytes(2_000_000)) for n in range(3)])
    with pytest.raises(InputError, match="times its size, as no images do"):
        io.read(path)
    monkeypatch.setattr(dicom_archive, "MAX_ZIP_MEMBERS", 2)
    with pytest.raises(InputError, match="in 3 files"):
        io.read(path)


def test_members_with_one_name_are_all_read_and_can_be_read_again(tmp_path: Path) -> None:
    files = [path.read_bytes() for path in series(tmp_path / "s")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = packed(tmp_path / "a.zip", [("../IM", data) for data in files])
    (found,) = io.index_dicom(path).images
    assert np.array_equal(io.read(found.locations).voxels, example().voxels)
    for location, data in zip(found.locations, files, strict=True):
        with opened(location) as stream:
            assert stream.read() == data


def test_a_long_header_in_a_zip(tmp_path: Path) -> None:
    paths = series(tmp_path / "s")
    for path in paths:
        change(path, lambda d: d.private_block(0x29, "SOMEBODY", create=True)
               .add_new(1, "OB", bytes(100_000)))  # fmt: skip
    archive = packed(tmp_path / "a.zip", [(p.name, p.read_bytes()) for p in paths])
    assert np.array_equal(io.read(archive).voxels, example().voxels)


# --- DICOMDIR --------------------------------------------------------------------------------


def medium(folder: Path) -> Path:
    files = FileSet()
    for path in series(folder / "draft"):
        change(path, put(StudyID="1"))
        files.add(pydicom.dcmread(path))
    files.write(folder / "medium")
    return folder / "medium" / "DICOMDIR"


def test_dicomdir_lists_what_is_read(tmp_path: Path) -> None:
    path = medium(tmp_path)
    assert np.array_equal(io.read(path).voxels, example().voxels)
    assert np.array_equal(io.read(path.parent).voxels, example().voxels)
    next(p for p in sorted(path.parent.rglob("*")) if p.is_file() and p != path).unlink()
    archive = io.index_dicom(path)
    assert [(a.reason, a.objects) for a in archive.set_aside] == [
        ("listed in the DICOMDIR but not there", 1)
    ]


@pytest.mark.parametrize("where", ["..", "/", "link"])
def test_dicomdir_leads_nowhere_else(tmp_path: Path, where: str) -> None:
    path = medium(tmp_path)
    outside = series(tmp_path / "outside", description="secret")[0]
    (path.parent / "LINK").symlink_to(outside.parent)
    named = {
        "..": ["..", "outside", outside.name],
        "/": [str(outside)],
        "link": ["LINK", outside.name],
    }[where]
    dataset = pydicom.dcmread(path)
    for record in dataset.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = named
    dataset.save_as(path)
    with pytest.raises(InputError, match="no readable DICOM image"):
        io.read(path)
    archive = io.index_dicom(path)
    assert (archive.images, archive.set_aside[0].objects) == ([], 4)


# --- grouping --------------------------------------------------------------------------------


def test_one_study_of_many_files_comes_out_once(tmp_path: Path) -> None:
    for number in range(30):
        series(tmp_path / str(number % 3), example(number), seed="a", series_number=number,
               description=f"d{number}", overwrite=True)  # fmt: skip
        for path in (tmp_path / str(number % 3)).glob("slice_*.dcm"):
            path.rename(path.with_name(f"{number}_{path.name}"))
    seen: list[int] = []
    archive = io.index_dicom(tmp_path, progress=seen.append)
    assert len(archive.images) == 30
    assert archive.files == seen[-1] == 120
    assert len({image.study_uid for image in archive.images}) == 1
    assert [image.number for image in archive.images] == [str(n) for n in range(30)]
    for number in (0, 17):
        volume = io.read(archive.images[number].locations)
        assert np.array_equal(volume.voxels, example(number).voxels)


def test_magnitude_and_phase_are_two_images(tmp_path: Path) -> None:
    for letter in "MP":
        for path in series(tmp_path / letter, example(ord(letter))):
            change(path, put(ImageType=["ORIGINAL", "PRIMARY", letter, "ND"]))
            change(path, other_uid)
    archive = io.index_dicom(tmp_path)
    assert [image.part for image in archive.images] == [1, 2]
    uid = archive.images[0].series_uid
    with pytest.raises(InputError, match="holds 2 series") as caught:
        io.read(tmp_path)
    assert " 1/2" in caught.value.message
    with pytest.raises(InputError, match="2 series called") as caught:
        io.read(tmp_path, series="1")
    assert "--series 1/1" in str(caught.value.hint)
    first, second = io.read(tmp_path, series="1/1"), io.read(tmp_path, series=f"{uid}/2")
    assert {v.voxels.tobytes() for v in (first, second)} == {
        example(ord(letter)).voxels.astype(np.float32).tobytes(order="F") for letter in "MP"
    } or not np.array_equal(first.voxels, second.voxels)


def test_acquisitions_that_overlap_are_two_images(tmp_path: Path) -> None:
    """Head and neck in one series: the same matrix, and a few places in common."""
    for number in range(2):
        affine = AFFINE.copy()
        affine[2, 3] += 9 * number
        volume = Volume.from_array(example(number).voxels[0], affine)
        for path in series(tmp_path / str(number), volume):
            change(path, put(AcquisitionNumber=number + 1))
            change(path, other_uid)
    archive = io.index_dicom(tmp_path)
    assert [image.facts["shape"] for image in archive.images] == [SHAPE, SHAPE]
    assert all(image.facts["blocking"] is None for image in archive.images)


def test_a_point_in_time_that_lacks_a_slice_is_no_shorter_image(tmp_path: Path) -> None:
    for number in range(2):
        for path in series(tmp_path / str(number), example(number)):
            change(path, put(AcquisitionNumber=number + 1))
            change(path, other_uid)
    (tmp_path / "1" / "slice_0004.dcm").unlink()
    with pytest.raises(GeometryError, match="between 1 and 2 images"):
        io.read(tmp_path)


def test_frames_of_reference(tmp_path: Path) -> None:
    """Two are two images; one for every object is an anonymiser's work."""
    paths = series(tmp_path / "s")
    for path in paths[2:]:
        change(path, put(FrameOfReferenceUID="1.2.3"))
    assert [image.facts["shape"][2] for image in io.index_dicom(tmp_path).images] == [2, 2]
    for path in paths:
        change(path, put(FrameOfReferenceUID=generate_uid()))
    assert np.array_equal(io.read(tmp_path).voxels, example().voxels)


@pytest.mark.parametrize(
    ("vendor", "label"), [("siemens", "b 1000"), ("ge", "b 1000"), ("philips", "b 1000")]
)
def test_private_b_values(tmp_path: Path, vendor: str, label: str) -> None:
    where = {
        "siemens": (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "{}"),
        "ge": (0x0043, "GEMS_PARM_01", 0x39, "IS", "100000{:04d}\\8\\0\\0"),
        "philips": (0x2001, "Philips Imaging DD 001", 0x03, "FL", None),
    }[vendor]
    for b in (0, 1000):
        for path in series(tmp_path / str(b), example(b)):

            def edit(d: Dataset, b: int = b) -> None:
                group, creator, element, vr, text = where
                value = float(b) if text is None else text.format(b)
                if isinstance(value, str) and "\\" in value:
                    value = value.split("\\")
                d.private_block(group, creator, create=True).add_new(element, vr, value)
                other_uid(d)

            change(path, edit)
    (image,) = io.index_dicom(tmp_path).images
    assert image.facts["frame_labels"] == ["b 0", label]
    for frame, b in enumerate((0, 1000)):
        volume = io.read(image.locations, frame=frame)
        assert np.array_equal(volume.voxels, example(b).voxels)
        assert volume.provenance.details["dicom"]["frame_label"] == f"b {b}"


def test_copies_are_dropped_but_not_what_only_looks_like_one(tmp_path: Path) -> None:
    series(tmp_path / "a")
    for path in series(tmp_path / "b"):
        change(path, other_uid)
    (facts,) = io.describe(tmp_path)
    assert (facts["frames"], facts["problems"]) == (1, ["4 copies of slices left out"])
    notes = io.read(tmp_path).provenance.details["dicom"]["notes"]
    assert notes == ("4 copies of slices left out",)
    for path in series(tmp_path / "b", example(1), overwrite=True):
        change(path, other_uid)
    assert io.describe(tmp_path)[0]["frames"] == 2


def test_gaps_are_named_and_counted(tmp_path: Path) -> None:
    paths = series(tmp_path / "s", example(shape=(6, 5, 12)))
    for path in paths[4:6]:
        path.unlink()
    with pytest.raises(GeometryError) as caught:
        io.read(tmp_path / "s")
    assert (
        "2 slices are missing: between slices 4 and 5 of 10, at (-40, -30, -11) and "
        "(-40, -30, -2), are 9 mm instead of 3" in caught.value.message
    )
    assert io.describe(tmp_path / "s")[0]["missing_slices"] == 2


def test_slices_that_get_thicker_are_no_gap(tmp_path: Path) -> None:
    """Head CT: thin below, thick above."""
    paths = series(tmp_path / "s", example(shape=(6, 5, 8)))
    for number, path in enumerate(paths):
        z = 3.0 * number if number < 5 else 12 + 7.0 * (number - 4)
        change(path, put(ImagePositionPatient=[-40, -30, -20 + z],
                         SliceThickness="3" if number < 4 else "7"))  # fmt: skip
    volume = io.read(tmp_path / "s")
    grid = volume.provenance.details["dicom"]["slices"]
    assert np.allclose(volume.geometry.spacing_mm, (1.5, 1.25, 3))
    assert np.allclose(grid.heights, [0, 1, 2, 3, 4, 19 / 3, 26 / 3, 11])
    back = grid.to_slices(volume.voxels[0])
    expected = example(shape=(6, 5, 8)).voxels[0]
    assert np.array_equal(back[..., [0, 1, 2, 3, 4, 7]], expected[..., [0, 1, 2, 3, 4, 7]])
    assert "from 3.000 to 7.000 mm: resampled to 3.000 mm" in str(volume.provenance.details)


def test_an_object_that_went_away_is_missed(tmp_path: Path) -> None:
    series(tmp_path / "s")
    (found,) = io.index_dicom(tmp_path).images
    assert io.read(found.locations).provenance.sources == tuple(
        str(p.file) for p in found.locations
    )
    found.locations[-1].file.unlink()
    with pytest.raises(InputError, match="1 of the 4 objects of the series cannot be read"):
        io.read(found.locations)
    with pytest.raises(InputError, match="2 of the 2 objects"):
        io.read([Location(tmp_path / "no"), Location(tmp_path / "where", "x")])


def test_damaged_files_beside_an_image_are_told(tmp_path: Path) -> None:
    path = series(tmp_path / "s")[0]
    (path.parent / "half.dcm").write_bytes(path.read_bytes()[:300])
    (facts,) = io.describe(path.parent)
    assert facts["problems"] == ["1 damaged DICOM file is left out"]
    assert io.index_dicom(path.parent).set_aside[0].reason == "damaged"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    series(tmp_path / "s")
    os.mkfifo(tmp_path / "s" / "pipe")
    assert len(io.index_dicom(tmp_path).images) == 1


# --- what is set aside -----------------------------------------------------------------------

STORAGE = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        # A scan as scanners, converters and anonymisers write it
        ({}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]}, None),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER"]}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "RESAMPLED"]}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "FA"]}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "SWI"]}, None),
        ({"ImageType": None}, None),
        ({"SOPClassUID": STORAGE + "7", "ImagePositionPatient": [0, 0, 0]}, None),
        ({"SOPClassUID": STORAGE + "481.1", "Modality": "RTIMAGE"}, None),
        ({"SOPClassUID": "1.2.3.4.5.6"}, None),
        ({"SeriesDescription": "t1 discourt"}, None),
        # Pictures that are not worked on
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]}, "localiser"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"]}, "localiser"),
        ({"SeriesDescription": "AAHead_Scout_MPR_sag"}, "localiser by its name"),
        ({"SeriesDescription": "3-plane Localizer"}, "localiser by its name"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"]}, "derived: ADC map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]},
         "derived: trace-weighted image"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "FA", "ND"]},
         "derived: fractional anisotropy map"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "derived: reformatted image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PROJECTION IMAGE"]}, "derived: projection"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"]}, "derived: subtraction"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen save"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "dose report"),
        ({"SOPClassUID": STORAGE + "7"}, "secondary capture"),
        ({"SOPClassUID": STORAGE + "7.2", "SeriesDescription": "Dose Report"}, "dose report"),
        # No pictures
        ({"SOPClassUID": STORAGE + "88.33"}, "structured report"),
        ({"SOPClassUID": STORAGE + "88.67"}, "dose report"),
        ({"SOPClassUID": STORAGE + "88.59"}, "key object selection"),
        ({"SOPClassUID": STORAGE + "11.1"}, "presentation state"),
        ({"SOPClassUID": STORAGE + "66.4"}, "segmentation"),
        ({"SOPClassUID": STORAGE + "66"}, "raw data"),
        ({"SOPClassUID": STORAGE + "30"}, "parametric map"),
        ({"SOPClassUID": STORAGE + "481.2"}, "radiotherapy dose"),
        ({"SOPClassUID": STORAGE + "481.3"}, "radiotherapy structure set"),
        ({"SOPClassUID": STORAGE + "9.1.1"}, "waveform"),
        ({"SOPClassUID": STORAGE + "104.1"}, "encapsulated document"),
        ({"SOPClassUID": STORAGE + "4.2"}, "spectroscopy"),
        ({"SOPClassUID": "1.2.3", "Modality": "SR"}, "structured report"),
        ({"Rows": None}, "no pixels"),
    ],
)  # fmt: skip
def test_kinds(values: dict[str, Any], reason: str | None) -> None:
    header = Dataset()
    header.SOPClassUID, header.Modality = STORAGE + "4", "MR"
    header.Rows = header.Columns = 8
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    put(**values)(header)
    found = set_aside(header)
    assert (found.reason if found else None) == reason


def test_a_picture_set_aside_is_read_if_it_is_all_there_is(tmp_path: Path) -> None:
    adc = ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]
    for path in series(tmp_path / "adc", example(1), series_number=9, description="adc"):
        change(path, put(ImageType=adc))
    assert np.array_equal(io.read(tmp_path / "adc").voxels, example(1).voxels)
    (facts,) = io.describe(tmp_path / "adc")
    assert facts["problems"] == ["set aside in archives: derived: ADC map"]
    series(tmp_path / "scan")
    assert np.array_equal(io.read(tmp_path).voxels, example().voxels)
    assert np.array_equal(io.read(tmp_path, series="9").voxels, example(1).voxels)
    archive = io.index_dicom(tmp_path)
    assert [(a.reason, a.objects, a.number) for a in archive.set_aside] == [
        ("derived: ADC map", 4, "9")
    ]


def test_the_sample_series_is_an_image() -> None:
    folder = Path(__file__).parents[2] / "sample_data" / "dicom_t1"
    archive = io.index_dicom(folder)
    assert (len(archive.images), archive.set_aside) == (1, [])
    assert archive.images[0].header["image_type"] == ["DERIVED", "SECONDARY", "OTHER"]


# --- damage ----------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, lost, added, cut: mostly in the header."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 5, 20])):
        at = rng.randrange(min(len(changed), 4000))
        kind = rng.random()
        if kind < 0.5:
            changed[at] = rng.randrange(256)
        elif kind < 0.7:
            changed[at : at + 4] = rng.choice(
                [b"\xff" * 4, bytes(4), b"SQ\0\0", b"UN\0\0", b"\xfe\xff\0\xe0"]
            )
        elif kind < 0.85:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            changed[at:at] = bytes(rng.randrange(1, 9))
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


@pytest.mark.parametrize("kind", ["enhanced MR", "mosaic", "PET START", "DICOMDIR", "zip"])
def test_damage_gives_an_answer_or_an_error_never_a_crash(tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path / "in", seed=2)
    named = made.folder if made.folder.is_file() else None
    source = named or next(p for p in sorted(made.folder.rglob("*")) if p.is_file())
    data, rng = source.read_bytes(), random.Random(kind)
    for _ in range(60):
        source.write_bytes(damaged(data, rng))
        for attempt in (
            lambda: io.index_dicom(made.folder),
            lambda: io.describe(made.folder),
            lambda: io.read(made.folder, frame=0),
        ):
            with contextlib.suppress(InputError):
                attempt()
