"""A whole archive de-identified: references fit, geometry and pixels stay, names are new."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import dicom_out_cases
import hostile_dicom
import numpy as np
import pydicom
import pytest
from deidentify_cases import encoded, image
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.errors import InputError
from medgen.io import read
from medgen.io.deidentify import Profile
from medgen.io.walk import walk
from medgen.tasks.deidentify import attribute_table, deidentify

KEY = bytes(32)
BESIDE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def objects(folder: Path) -> list[Path]:
    return [path for path in walk(folder) if path.suffix == ".dcm"]


def put(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "kind",
    ["oblique", "tilted gantry", "enhanced MR", "JPEG 2000", "big endian", "deflated",
     "no preamble", "MONOCHROME1", "echoes"],
)  # fmt: skip
def test_voxels_and_geometry_stay(kind: str, tmp_path: Path) -> None:
    source = hostile_dicom.build(kind, tmp_path / "in").folder
    done = deidentify(source, tmp_path / "out", key=KEY)
    assert (done.set_aside, done.damaged) == (0, 0)
    options: dict[str, Any] = {"frame": 1} if kind == "echoes" else {}
    before, after = read(source, **options), read(tmp_path / "out", **options)
    assert np.array_equal(before.voxels, after.voxels)
    assert np.array_equal(before.affine, after.affine)


@pytest.mark.parametrize("kind", ["PET START", "PET ADMIN", "enhanced PET"])
def test_a_pet_keeps_its_suv_with_the_options_it_needs(kind: str, tmp_path: Path) -> None:
    source = hostile_dicom.build(kind, tmp_path / "in").folder
    profile = Profile(dates="shift", keep_patient_characteristics=True)
    deidentify(source, tmp_path / "out", profile=profile, key=KEY)
    before, after = read(source, units="SUVbw"), read(tmp_path / "out", units="SUVbw")
    assert np.array_equal(before.voxels, after.voxels)
    deidentify(source, tmp_path / "basic", key=KEY)
    with pytest.raises(InputError, match="SUV"):
        read(tmp_path / "basic", units="SUVbw")


def test_a_segmentation_still_points_to_its_images(tmp_path: Path) -> None:
    volume = dicom_out_cases.scan("oblique", tmp_path)
    source = tmp_path / "archive"
    written = dicom_out_cases.write_all(volume, source)
    done = deidentify(source, tmp_path / "out", key=KEY)
    reasons = {entry["reason"].split(":")[0] for entry in done.report["set_aside"]}
    assert reasons == {"structured report", "burned-in annotation possible"}
    after = [pydicom.dcmread(path) for path in objects(tmp_path / "out")]
    images = {d.SOPInstanceUID for d in after if d.Modality == "MR" and "PixelData" in d}
    (segmentation,) = [d for d in after if d.Modality == "SEG"]
    before = pydicom.dcmread(written["seg"])
    named = re.findall(r"2\.25\.\d+", json.dumps(segmentation.to_json_dict()))
    assert images <= set(named)
    series = segmentation.ReferencedSeriesSequence[0]
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} <= images
    assert segmentation.FrameOfReferenceUID in {d.FrameOfReferenceUID for d in after}
    assert segmentation.PixelData == before.PixelData
    assert len({d.StudyInstanceUID for d in after}) == 1


def uids(dataset: pydicom.Dataset) -> set[str]:
    return set(re.findall(r'"((?:\d+\.){3,}\d+)"', json.dumps(dataset.to_json_dict())))


@pytest.mark.parametrize("kind", ["oblique", "enhanced MR", "PET START"])
def test_no_old_uid_is_left(kind: str, tmp_path: Path) -> None:
    source = hostile_dicom.build(kind, tmp_path / "in").folder
    deidentify(source, tmp_path / "out", key=KEY)
    old = {u for path in walk(source) for u in uids(pydicom.dcmread(path))}
    new = {u for path in objects(tmp_path / "out") for u in uids(pydicom.dcmread(path))}
    assert len(old) > 3
    assert {u for u in old & new if not u.startswith("1.2.840.10008.")} == set()


@pytest.mark.skipif(shutil.which("dciodvfy", path=BESIDE) is None, reason="needs dicom3tools")
@pytest.mark.parametrize("kind", ["oblique", "enhanced MR", "PET START", "seg", "pmap"])
@pytest.mark.parametrize(
    "profile",
    [Profile(), Profile(dates="shift", clean_descriptors=True, keep_patient_characteristics=True)],
    ids=["basic", "options"],
)
def test_the_validator_finds_no_new_error(kind: str, profile: Profile, tmp_path: Path) -> None:
    if kind in ("seg", "pmap"):
        volume = dicom_out_cases.scan("oblique", tmp_path / "scan")
        path = dicom_out_cases.write_all(volume, tmp_path / "all")[kind]
        (tmp_path / "in").mkdir()
        path.rename(tmp_path / "in" / "one.dcm")
        source = tmp_path / "in"
    else:
        source = hostile_dicom.build(kind, tmp_path / "in").folder
    deidentify(source, tmp_path / "out", profile=profile, key=KEY)
    first = next(iter(walk(source)))
    errors = set(dicom_out_cases.errors(objects(tmp_path / "out")[0]))
    assert errors - set(dicom_out_cases.errors(first)) == set()


def test_names_are_new_and_the_tree_is_by_patient(tmp_path: Path) -> None:
    source = put(
        tmp_path / "Doe^Jane",
        a=encoded(image("1", 1)), b=encoded(image("1", 2)), c=encoded(image("2", 3)),
    )  # fmt: skip
    done = deidentify(source, tmp_path / "out", key=KEY)
    assert (done.written, done.report["patients"]) == (3, 2)
    pattern = r"ANON-[0-9A-F]{12}/study-[0-9a-f]{8}/series-0003-[0-9a-f]{8}/\d{5}-[0-9a-f]{12}.dcm"
    names = [str(path.relative_to(tmp_path / "out")) for path in objects(tmp_path / "out")]
    assert all(re.fullmatch(pattern, name) for name in names)
    for report in ("deidentification.json", "deidentification.tsv", "run.json"):
        text = (tmp_path / "out" / report).read_text()
        assert not re.search(r"Doe|Jane|1\.2\.\d", text)


def test_the_report_counts_and_a_second_run_agrees(tmp_path: Path) -> None:
    source = put(tmp_path / "in", a=encoded(image("1", 1)), b=encoded(image("1", 2)))
    first = deidentify(source, tmp_path / "one", key=KEY)
    deidentify(source, tmp_path / "two", key=KEY)
    for one, two in zip(objects(tmp_path / "one"), objects(tmp_path / "two"), strict=True):
        assert one.relative_to(tmp_path / "one") == two.relative_to(tmp_path / "two")
        assert one.read_bytes() == two.read_bytes()
    other = deidentify(source, tmp_path / "three")
    assert other.report["series"] != first.report["series"]
    assert "gone" in other.report["key"]
    table = attribute_table(first.report).splitlines()
    assert "PatientID\treplaced\t2" in table
    assert "SOPInstanceUID\tnew UID\t2" in table
    assert json.loads((tmp_path / "one" / "deidentification.json").read_text()) == first.report


def test_one_bad_object_stops_nothing(tmp_path: Path) -> None:
    good = encoded(image())
    source = put(
        tmp_path / "in",
        a=good, b=good, c=encoded(image(Rows=33)), d=good[:200], e=b"no DICOM", f=b"",
        g=encoded(image(BurnedInAnnotation="YES", instance=4)),
        h=encoded(image(SeriesNumber=9)),  # the same UID, another object
        i=encoded(image(instance=5)),
    )  # fmt: skip
    done = deidentify(source, tmp_path / "out", key=KEY)
    assert (done.written, done.set_aside, done.damaged) == (2, 3, 2)
    assert done.report["foreign"] == 2
    by_reason = {entry["reason"]: entry["positions"] for entry in done.report["set_aside"]}
    assert by_reason["a second copy of an object already written"] == [2]
    assert by_reason["another object with the same UID of an object already written"] == [8]


def test_zips_are_read_and_members_are_no_paths(tmp_path: Path) -> None:
    source = put(tmp_path / "in", plain=encoded(image(instance=1)))
    with zipfile.ZipFile(source / "x.zip", "w") as archive:
        archive.writestr("../../evil.dcm", encoded(image(instance=2)))
        archive.writestr("/abs/Doe^Jane.dcm", encoded(image(instance=3)))
    done = deidentify(source, tmp_path / "out", key=KEY)
    assert done.written == 3
    assert not list(tmp_path.rglob("evil*"))
    alone = deidentify(source / "x.zip", tmp_path / "zip", key=KEY)
    assert alone.written == 2


def test_the_source_is_not_touched_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = put(tmp_path / "in", a=encoded(image()))
    before = (source / "a").read_bytes(), (source / "a").stat().st_mtime_ns
    done = deidentify(source, tmp_path / "out", key=KEY, dry_run=True)
    assert done.written == 1
    assert not (tmp_path / "out").exists()
    deidentify(source, tmp_path / "out", key=KEY)
    assert before == ((source / "a").read_bytes(), (source / "a").stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("Doe", "out", "does not exist"),
        ("in", "in", "inside the input"),
        ("in", "in/out", "inside the input"),
        ("in/deep", "in", "inside the output"),
        ("in", "full", "not empty"),
        ("in", "file", "must name a folder"),
        ("empty", "out", "holds no DICOM"),
        ("file", "out", "holds no DICOM"),
    ],
)
def test_what_is_refused(source: str, output: str, message: str, tmp_path: Path) -> None:
    put(tmp_path / "in" / "deep", a=encoded(image()))
    put(tmp_path / "full", other=b"x")
    put(tmp_path / "empty")
    put(tmp_path, file=b"x")
    with pytest.raises(InputError, match=message) as raised:
        deidentify(tmp_path / source, tmp_path / output, key=KEY)
    assert "Doe" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_overwrite_replaces_and_without_it_nothing_is(tmp_path: Path) -> None:
    source = put(tmp_path / "in", a=encoded(image()))
    deidentify(source, tmp_path / "out", key=KEY)
    (path,) = objects(tmp_path / "out")
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="not empty"):
        deidentify(source, tmp_path / "out", key=KEY)
    assert path.read_bytes() == b"old"
    with pytest.raises(InputError, match="other pseudonyms"):
        deidentify(source, tmp_path / "out", overwrite=True)
    assert path.read_bytes() == b"old" and objects(tmp_path / "out") == [path]
    deidentify(source, tmp_path / "out", key=KEY, overwrite=True)
    assert path.read_bytes() != b"old"


@settings(max_examples=15, deadline=None)
@given(
    text=st.text(min_size=1, max_size=40),
    uid=st.text(st.characters(codec="latin-1"), min_size=1, max_size=80),
    number=st.integers(-9, 2**31),
)
def test_no_value_becomes_a_path(
    text: str, uid: str, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("paths")
    with pydicom.config.disable_value_validation():
        dataset = image(SpecificCharacterSet="ISO_IR 192", SeriesNumber=number)
        dataset.PatientID = text
        dataset.SeriesInstanceUID = dataset.StudyInstanceUID = dataset.SOPInstanceUID = uid
        data = encoded(dataset)
    put(folder / "in", a=data)
    deidentify(folder / "in", folder / "out", key=KEY)
    assert len(list((folder / "out").iterdir())) <= 4
    for path in folder.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name)
        assert path.resolve().is_relative_to(folder.resolve())
