"""What the objects say: whose they are, what made them, what was found; what they keep quiet."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_dicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_out_cases import (
    FLAT,
    PRODUCER,
    REASONS,
    RESULT,
    TOOLS,
    errors,
    report_by_dcmqi,
    scan,
    spots,
    write_all,
)
from hostile_objects import BIRTH, NAME, PATIENT_ID
from pydicom import config
from pydicom.dataset import Dataset

from medgen import io
from medgen.errors import InputError
from medgen.io import dicom_out
from medgen.volume import Volume

Edit = Callable[[Dataset], Any]


def edited(folder: Path, edit: Edit, kind: str = "oblique") -> Volume:
    """A scan whose objects were changed before it was read."""
    archive = hostile_dicom.build(kind, folder / "archive").folder
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(p for p in archive.rglob("*") if p.is_file()):
            dataset = pydicom.dcmread(path)
            edit(dataset)
            dataset.save_as(path)
    return io.read(archive)


def written(volume: Volume, folder: Path) -> dict[str, Dataset]:
    return {kind: pydicom.dcmread(path) for kind, path in write_all(volume, folder).items()}


def test_patient_study_and_maker(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    source = pydicom.dcmread(next((tmp_path / "archive").rglob("IM*")))
    objects = written(volume, tmp_path / "out")
    series = {d.SeriesInstanceUID for d in objects.values()} | {source.SeriesInstanceUID}
    assert len(series) == 5
    for d in objects.values():
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID",
                        "StudyInstanceUID", "StudyDate", "AccessionNumber"):  # fmt: skip
            assert d[keyword].value == source[keyword].value
        assert (d.Manufacturer, d.DeviceSerialNumber) == ("medgen", PRODUCER.sha256)
        assert list(d.SoftwareVersions)[1] == "tiny 1.2.3"
        assert d.ContentQualification == "RESEARCH"
        assert "research" in d.SeriesDescription
        assert d.SyntheticData == "YES"  # as the source
        assert d.get("ImageType", ["DERIVED"])[0] == "DERIVED"
    (segment,) = objects["seg"].SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.TrackingID == "anomaly" and segment.TrackingUID
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("medgen tiny", "1.2.3")
    mapping = objects["pmap"].SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)


def test_a_real_scan_does_not_become_synthetic(tmp_path: Path) -> None:
    def edit(d: Dataset) -> None:
        del d.SyntheticData

    for d in written(edited(tmp_path, edit), tmp_path / "out").values():
        assert "SyntheticData" not in d


def without_dates(dataset: Dataset, element: Any) -> None:
    if element.VR in ("DA", "TM", "DT"):
        del dataset[element.tag]


def test_the_same_result_is_the_same_object(tmp_path: Path) -> None:
    volume = scan("enhanced b-values", tmp_path, 1)
    first, again = (written(volume, tmp_path / name) for name in ("a", "b"))
    for kind, one in first.items():
        other = again[kind]
        for d in (one, other):
            d.walk(without_dates)
        assert one == other, kind


def test_another_frame_model_or_result_is_another_object(tmp_path: Path) -> None:
    volume = scan("enhanced b-values", tmp_path, 1)
    other_frame = io.read(tmp_path / "archive", frame=0)
    mask = np.zeros(volume.geometry.shape, bool)
    model = dicom_out.Producer("tiny", "1.2.3", "cd" * 32)

    def uids(number: int, volume: Volume, producer: dicom_out.Producer, mask: Any) -> Any:
        source = dicom_out.open_source(volume)
        return dicom_out.write_segmentation(tmp_path / f"{number}.dcm", source, producer, mask)

    first = uids(0, volume, PRODUCER, mask)
    by_result = uids(1, volume, PRODUCER, ~mask)
    others = [uids(2, other_frame, PRODUCER, mask), uids(3, volume, model, mask)]
    assert by_result.series_uid == first.series_uid
    assert len({x.instance_uid for x in (first, by_result, *others)}) == 4
    assert len({x.series_uid for x in (first, *others)}) == 3


@pytest.mark.skipif(not (TOOLS / "tid1500reader").exists(), reason="dcmqi is not installed")
def test_dcmqi_reads_the_report(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    paths = write_all(volume, tmp_path / "out")
    whole, *groups = report_by_dcmqi(paths["sr"], tmp_path / "q")
    numbers = {m["quantity"]["CodeValue"]: float(m["value"]) for m in whole["measurementItems"]}
    assert numbers == {"246262008": RESULT.score, "122411": RESULT.threshold, "P_VALUE": 0.1}
    texts = [e["conceptValue"] for e in whole["qualitativeEvaluations"]]
    assert f"Threshold: {RESULT.threshold_meaning}" in texts
    for spot, group in zip(spots(volume), groups, strict=True):
        assert group["TrackingIdentifier"] == f"finding {spot.label}"
        assert group["Finding"]["CodeValue"] == "49755003"
        assert group["ReferencedSegment"] == 1
        volume_mm3, mean, peak = group["measurementItems"]
        assert float(volume_mm3["value"]) == pytest.approx(spot.volume_mm3)
        assert volume_mm3["units"]["CodeValue"] == "mm3"
        assert float(mean["value"]) == pytest.approx(spot.mean)
        assert mean["derivationModifier"]["CodeMeaning"] == "Mean"
        assert float(peak["value"]) == pytest.approx(spot.peak)


def items(node: Dataset) -> list[Dataset]:
    """Every content item below a node."""
    found = []
    for item in node.get("ContentSequence", ()):
        found += [item, *items(item)]
    return found


def test_centres_lie_in_the_frame_of_reference(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    objects = written(volume, tmp_path / "out")
    report = objects["sr"]
    points = [item for item in items(report) if item.ValueType == "SCOORD3D"]
    for spot, point in zip(spots(volume), points, strict=True):
        assert point.ReferencedFrameOfReferenceUID == objects["seg"].FrameOfReferenceUID
        assert np.abs(np.array(point.GraphicData) - spot.centroid_mm * np.array([-1, -1, 1])
                      ).max() < 1e-3  # fmt: skip
    cited = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in items(report)
        if item.ValueType == "IMAGE"
    }
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    evidence = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert cited == evidence
    assert objects["seg"].SOPInstanceUID in cited
    assert len(cited) == volume.geometry.shape[2] + 1


def test_a_finding_says_what_made_it_one(tmp_path: Path) -> None:
    """Of the first finding it is known, of the others it is not."""
    report = written(scan("oblique", tmp_path), tmp_path / "out")["sr"]
    texts = [item.TextValue for item in items(report) if "TextValue" in item]
    said = [text for text in texts if text.startswith("What made it a finding")]
    assert said == [f"What made it a finding: {REASONS[1]}"]


def test_a_report_alone(tmp_path: Path) -> None:
    """No segmentation to cite, no p-value, no findings: still a valid report."""
    volume = scan("one slice", tmp_path)
    source = dicom_out.open_source(volume)
    result = dicom_out.ScanResult(0.5, None, 0.4, "the model's default")
    for number, findings in enumerate(([], spots(volume))):
        path = tmp_path / f"{number}.dcm"
        dicom_out.write_measurement_report(path, source, PRODUCER, result, findings)
        assert errors(path) == []
        texts = [item.TextValue for item in items(pydicom.dcmread(path)) if "TextValue" in item]
        assert "Research use only; not a medical device." in texts
        assert any("no p-value" in text for text in texts)
        areas = [
            item.MeasuredValueSequence[0]
            for item in items(pydicom.dcmread(path))
            if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Area"
        ]
        assert len(areas) == len(findings)
        for area, finding in zip(areas, findings, strict=True):
            thickness = np.linalg.norm(volume.affine[:3, 2])
            assert area.NumericValue == pytest.approx(finding.volume_mm3 / thickness)


def test_a_picture_without_a_place_is_reported_by_its_pixels(tmp_path: Path) -> None:
    volume = scan(next(iter(FLAT)), tmp_path)
    report = written(volume, tmp_path / "out")["sr"]
    points = [item for item in items(report) if item.ValueType == "SCOORD"]
    for spot, point in zip(spots(volume), points, strict=True):
        assert np.allclose(point.GraphicData, np.array(spot.centroid_voxel) + 0.5)
    source = dicom_out.open_source(volume)
    with pytest.raises(InputError, match="Parametric Map must say where it lies"):
        dicom_out.write_parametric_map(
            tmp_path / "x.dcm", source, PRODUCER, np.zeros(volume.geometry.shape)
        )
    assert not (tmp_path / "x.dcm").exists()


def test_the_overview_is_kept_pixel_by_pixel(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    path = tmp_path / "sc.dcm"
    source = dicom_out.open_source(volume)
    dicom_out.write_secondary_capture(path, source, PRODUCER, picture)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0], picture)
    d = pydicom.dcmread(path)
    assert d.BurnedInAnnotation == "NO"
    assert len(d.SourceImageSequence) == volume.geometry.shape[2]
    with pytest.raises(InputError, match="rows, columns, 3"):
        dicom_out.write_secondary_capture(tmp_path / "x.dcm", source, PRODUCER, picture[..., 0])


def test_burned_in_annotation_is_inherited(tmp_path: Path) -> None:
    volume = edited(tmp_path, lambda d: setattr(d, "BurnedInAnnotation", "YES"))
    assert written(volume, tmp_path / "out")["sc"].BurnedInAnnotation == "YES"


# --- sources as they are ---------------------------------------------------------------------


def remove(*keywords: str) -> Edit:
    def edit(d: Dataset) -> None:
        for keyword in keywords:
            d.pop(keyword, None)

    return edit


def set_to(**values: Any) -> Edit:
    def edit(d: Dataset) -> None:
        for keyword, value in values.items():
            setattr(d, keyword, value)

    return edit


def raw(tag: int, vr: str, value: bytes) -> Edit:
    """A value that is not of its type."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    def edit(d: Dataset) -> None:
        d[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)

    return edit


DAMAGE: dict[str, Edit] = {
    "nothing of type 2": remove(
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
        "Manufacturer", "SliceThickness", "SeriesNumber", "SpecificCharacterSet",
    ),
    "no frame of reference": remove("FrameOfReferenceUID"),
    "dates of another age": set_to(PatientBirthDate="1950.01.02", StudyDate="2020-13-77"),
    "no dates": set_to(StudyDate="yesterday", StudyTime="25:61", PatientAge="old"),
    "de-identified somehow": set_to(PatientIdentityRemoved="YES"),
    "one frame, stated": set_to(NumberOfFrames=1),
    "odd sex": set_to(PatientSex="female", PatientIdentityRemoved="maybe"),
    "japanese": set_to(
        SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        StudyDescription="頭部",
    ),
    "wrong character set": raw(0x00081030, "LO", b"K\xf6pf \xff\xfe"),
    "backslashes and line ends": set_to(StudyDescription="HEAD\\NECK\r\nT1", StudyID="1\\2"),
    "too long": set_to(StudyDescription="x" * 200, StudyID="y" * 40, PatientID="p" * 80),
    "series number too large": set_to(SeriesNumber=2**31 - 1),
    "weight that is none": raw(0x00101030, "DS", b"heavy "),
    "a name of nothing": set_to(PatientName="^^^^^"),
    "a name of seven parts": set_to(PatientName="Doe^Jane^a^b^c^d^e=x=y=z"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_headers(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = edited(tmp_path, DAMAGE[damage])
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        paths = write_all(volume, tmp_path / "out")
    said = caplog.text + "".join(str(warning.message) for warning in caught)
    for secret in (NAME, PATIENT_ID, BIRTH, "Yamada"):
        assert secret not in said
    found = {name: errors(path) for name, path in paths.items()}
    if damage == "too long":  # an identifier is never cut: it would be another's
        assert pydicom.dcmread(paths["seg"]).PatientID == "p" * 80
        found = {n: [e for e in es if "PatientID" not in e] for n, es in found.items()}
    assert found == {name: [] for name in found}
    if damage == "japanese":
        assert "山田^太郎" in str(pydicom.dcmread(paths["sr"]).PatientName)
    if damage == "no frame of reference":
        objects = [pydicom.dcmread(paths[kind]) for kind in ("seg", "pmap")]
        assert len({d.FrameOfReferenceUID for d in objects}) == 1


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_what_cannot_be_cited_is_refused(keyword: str, tmp_path: Path) -> None:
    volume = edited(tmp_path, remove(keyword), "one slice")
    with pytest.raises(InputError, match=keyword):
        dicom_out.check_source(volume)


def test_a_path_is_no_uid(tmp_path: Path) -> None:
    """The archive's identifiers read `../../../evil`."""
    volume = scan("path-like tags", tmp_path)
    with pytest.raises(InputError, match=r"no valid S.*UID") as caught:
        dicom_out.open_source(volume)
    assert "evil" not in str(caught.value)


def test_another_format_is_refused(tmp_path: Path) -> None:
    volume = Volume.from_array(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(InputError, match="comes from memory"):
        dicom_out.open_source(volume)


def test_files_that_are_gone_or_changed_are_noticed(tmp_path: Path) -> None:
    volume = edited(tmp_path, lambda d: None)
    archive = tmp_path / "archive"
    moved = shutil.copytree(archive, tmp_path / "kept")
    first, second = sorted(archive.iterdir())[:2]
    second.replace(first)
    with pytest.raises(InputError, match="changed, or are gone") as caught:
        dicom_out.open_source(volume)
    assert str(archive) not in str(caught.value)
    shutil.rmtree(archive)
    with pytest.raises(InputError, match="changed, or are gone"):
        dicom_out.open_source(volume)
    moved.rename(archive)
    dicom_out.open_source(volume)


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dicom_out.open_source(scan("oblique", tmp_path))
    folder = tmp_path / "out"

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", fail)
    with pytest.raises(InputError, match="disk is full"):
        dicom_out.write_segmentation(
            folder / "x.dcm", source, PRODUCER, np.zeros(source.volume.geometry.shape, bool)
        )
    assert not folder.exists()
