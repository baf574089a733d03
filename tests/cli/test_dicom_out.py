"""`medgen detect-anomalies --dicom-out`: what is written, listed, refused and never said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from tiny_packages import Cli, phantom

import medgen
from medgen.errors import InputError
from medgen.io import write_dicom_series
from medgen.run_record import hash_file

BASELINE = ("--model", "tiny-baseline")
OBJECTS = {"scan_seg.dcm", "scan_pmap.dcm", "scan_sr.dcm", "scan_sc.dcm"}
NAME, NUMBER = "Doe^Jane", "ID-4711"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head as DICOM, in a folder and with a header that name a person."""
    folder = tmp_path_factory.mktemp("dicom") / "DOE_JANE"
    for path in write_dicom_series(folder, phantom().image, seed="one"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = NAME, NUMBER
        dataset.save_as(path)
    return folder


def dicoms(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.dcm")}


def forbid_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("medgen.tasks.detect.run_model", fail)


def test_all_objects_in_one_run(cli: Cli, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--dicom-out", "seg,pmap,sr,sc", "--json", "-q")
    result = cli("detect-anomalies", series, "-o", out, *words, *BASELINE)
    assert result.exit_code == 0, result.output
    assert dicoms(out) == OBJECTS
    outputs = json.loads(result.stdout)["outputs"]
    assert {Path(outputs[kind]).name for kind in ("seg", "pmap", "sr", "sc")} == OBJECTS
    record = json.loads((out / "run.json").read_text())
    hashes = {entry["name"]: entry["sha256"] for entry in record["outputs"]}
    assert {name: hashes[name] for name in OBJECTS} == {n: hash_file(out / n) for n in OBJECTS}
    assert "--dicom-out seg,pmap,sr,sc" in record["command"]
    for name in OBJECTS:
        dataset = pydicom.dcmread(out / name)
        assert (dataset.PatientName, dataset.PatientID) == (NAME, NUMBER)
    # The person is named where a PACS needs it, and nowhere else.
    for path in out.iterdir():
        if path.name not in OBJECTS:
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in ("Jane", "JANE", NUMBER))
    assert NUMBER not in result.output and "Jane" not in result.output


def test_objects_say_what_the_files_say(cli: Cli, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli("detect-anomalies", series, "-o", out, "--dicom-out", "sc,seg,pmap", *BASELINE)
    mask = np.asarray(nib.load(out / "scan_desc-anomaly_mask.nii.gz").dataobj) > 0
    segmentation = pydicom.dcmread(out / "scan_seg.dcm")
    assert np.array_equal(segmentation.pixel_array.transpose(2, 1, 0) > 0, mask)
    assert mask.any()
    scores = np.asarray(nib.load(out / "scan_desc-anomaly_map.nii.gz").dataobj)
    parametric = pydicom.dcmread(out / "scan_pmap.dcm")
    assert np.array_equal(parametric.pixel_array.transpose(2, 1, 0), scores)
    with Image.open(out / "overview.png") as overview:
        picture = np.asarray(overview.convert("RGB"))
    assert np.array_equal(pydicom.dcmread(out / "scan_sc.dcm").pixel_array, picture)


def test_only_what_was_asked_for(cli: Cli, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--dicom-out", " SC, ", "--no-report")
    result = cli("detect-anomalies", series, "-o", out, *words, *BASELINE)
    assert result.exit_code == 0, result.output
    assert dicoms(out) == {"scan_sc.dcm"}
    assert not (out / "overview.png").exists()
    cli("detect-anomalies", series, "-o", tmp_path / "none", "--no-report", *BASELINE)
    assert dicoms(tmp_path / "none") == set()


@pytest.mark.parametrize("word, near", [("segm", "'seg'"), ("seg,psr", "'sr'"), ("rtstruct", "")])
def test_unknown_kinds(
    cli: Cli, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, near: str
) -> None:
    forbid_computing(monkeypatch)
    words = ("-o", tmp_path / "out", "--dicom-out", word)
    result = cli("detect-anomalies", series, *words, *BASELINE)
    assert result.exit_code == 2
    assert "no kind of DICOM output" in result.stderr
    assert near in result.stderr and "seg, pmap, sr, sc" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_another_format_is_refused_before_anything_is_computed(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    forbid_computing(monkeypatch)
    command = ("detect-anomalies", scan, "-o", tmp_path / "out", "--dicom-out", "seg", *words)
    result = cli(*command, *BASELINE)
    assert result.exit_code == 2, result.output
    assert "beside a DICOM series, but the scan comes from nifti" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_series_that_cannot_be_cited_is_refused_before_anything_is_computed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in write_dicom_series(tmp_path / "in", phantom().image, seed="one"):
        dataset = pydicom.dcmread(path)
        del dataset.StudyInstanceUID
        dataset.save_as(path)
    forbid_computing(monkeypatch)
    words = ("-o", tmp_path / "out", "--dicom-out", "sr")
    result = cli("detect-anomalies", tmp_path / "in", *words, *BASELINE)
    assert result.exit_code == 2, result.output
    assert "no valid StudyInstanceUID" in result.stderr
    assert not (tmp_path / "out").exists()


def test_results_inside_the_input_would_be_taken_for_input(cli: Cli, series: Path) -> None:
    before = dicoms(series)
    for words in (["--dry-run"], []):
        refused = cli(
            "detect-anomalies", series, "-o", series / "out", "-m", "tiny-baseline", *words
        )
        assert refused.exit_code == 2 and "lies inside the input" in refused.stderr
    assert dicoms(series) == before and not (series / "out").exists()


def test_dry_run_names_the_objects(cli: Cli, series: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "out", "--dicom-out", "seg,sr", "--dry-run")
    result = cli("detect-anomalies", series, *words, *BASELINE)
    assert result.exit_code == 0, result.output
    assert "scan_seg.dcm" in result.stdout and "scan_sr.dcm" in result.stdout


def test_existing_objects_are_not_replaced_unasked(cli: Cli, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "scan_seg.dcm").write_text("mine")
    words = ("detect-anomalies", series, "-o", out, "--no-report", "--dicom-out", "seg", *BASELINE)
    refused = cli(*words)
    assert refused.exit_code == 2 and "scan_seg.dcm" in refused.stderr
    assert (out / "scan_seg.dcm").read_text() == "mine"
    assert cli(*words, "--overwrite").exit_code == 0
    assert pydicom.dcmread(out / "scan_seg.dcm").Modality == "SEG"


def test_all_or_nothing(
    cli: Cli, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medgen.io.dicom_out.write_secondary_capture", fail)
    words = ("-o", tmp_path / "out", "--dicom-out", "seg,sc")
    result = cli("detect-anomalies", series, *words, *BASELINE)
    assert result.exit_code == 2, result.output
    assert list(tmp_path.iterdir()) == []


def test_from_python(series: Path, shelf: Path, tmp_path: Path) -> None:
    detection = medgen.detect_anomalies(series, shelf / "tiny-baseline", dicom_out=("sr", "seg"))
    paths = detection.save(tmp_path / "out", report=False, dicom_out="sr,seg")
    assert paths["sr"].name == "scan_sr.dcm" and paths["seg"].exists()
    report = pydicom.dcmread(paths["sr"])
    groups = [
        item
        for container in report.ContentSequence
        if container.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
        for item in container.ContentSequence
    ]
    assert len(groups) == 1 + len(detection.findings)
    in_memory = medgen.detect_anomalies(phantom().image, shelf / "tiny-baseline")
    with pytest.raises(InputError, match="comes from memory"):
        in_memory.save(tmp_path / "other", dicom_out=("seg",))
    assert not (tmp_path / "other").exists()
