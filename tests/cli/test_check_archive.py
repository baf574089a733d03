"""medgen check on folders and archives: a table for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hostile_cohorts
import hostile_dicom
import pytest
from hostile_objects import BIRTH, NAME, PATIENT_ID
from rich.cells import cell_len
from tiny_packages import Cli

from medgen.cli.check_view import _identifiers, _set_aside

KINDS = (
    "two patients, one series number", "localiser", "derived", "no images beside images",
    "echoes", "gap", "tilted gantry", "enhanced CT", "odd names", "path-like tags", "RLE",
    "garbage beside a scan", "unreadable folder", "two directions, one series UID",
)  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many studies, most with something odd."""
    folder = tmp_path_factory.mktemp("archive")
    for number, kind in enumerate(KINDS):
        hostile_dicom.build(kind, folder / str(number), seed=number)
    return folder


@pytest.fixture
def found(cli: Cli, archive: Path) -> dict[str, Any]:
    result = cli("check", archive, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)[0]


def test_the_facts_of_an_archive(found: dict[str, Any]) -> None:
    assert (found["ok"], found["kind"]) == (True, "folder")
    images = found["images"]
    assert len(images) == 16
    assert len({image["group"] for image in images}) == found["summary"]["studies"] == 15
    (gap,) = [image for image in images if image["missing_slices"]]
    assert "1 slice is missing" in gap["blocking"]["error"]
    assert not any(model["takes"] for model in gap["models"])
    (echoes,) = [image for image in images if image["frames"] == 3]
    assert "TE 4.6 ms" in echoes["frame_labels"][0]
    assert not any(model["takes"] for model in echoes["models"])
    reasons = {model["name"]: model["why"] for model in echoes["models"]}
    assert "--frame" in reasons["brain-mr"]
    assert "takes 2-D scans" in reasons["chest-xray-anomaly"]
    assert {image["modality"] for image in images} == {"MR", "CT"}
    assert "RLE Lossless" in {image["transfer_syntax"] for image in images}
    assert sorted(image["part"] for image in images)[-1] == 2


def test_what_is_set_aside_is_counted_with_its_reason(found: dict[str, Any]) -> None:
    reasons = found["summary"]["set_aside"]
    assert reasons["localiser"] == 9
    assert reasons["derived: ADC map"] == 12
    assert reasons["structured report"] == reasons["secondary capture"] == 1
    assert sum(entry["objects"] for entry in found["set_aside"]) == sum(reasons.values())
    (localiser,) = [entry for entry in found["set_aside"] if entry["reason"] == "localiser"]
    beside = [image for image in found["images"] if image["study_uid"] == localiser["study_uid"]]
    assert [image["group"] for image in beside] == [localiser["group"]]
    assert found["other_files"] == 4
    assert found["unreadable_folders"] == 1


def test_the_summary_counts_what_models_take(found: dict[str, Any]) -> None:
    usable = found["summary"]["usable"]
    assert usable["tiny-baseline"] == sum(
        model["takes"]
        for image in found["images"]
        for model in image["models"]
        if model["name"] == "tiny-baseline"
    )
    assert 5 < usable["tiny-baseline"] < len(found["images"])
    assert found["summary"]["blocked"] == 1


def test_json_names_nobody(cli: Cli, archive: Path) -> None:
    for words in (("--json",), (), ("-v",)):
        text = cli("check", archive, *words).output
        for secret in (NAME, NAME.split("^")[0], PATIENT_ID, BIRTH, "Secret", "A-99"):
            assert secret not in text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_table_fits_its_terminal(
    cli: Cli, archive: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = cli("check", archive)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (header,) = [n for n, line in enumerate(lines) if line.split()[:2] == ["study", "series"]]
    last = lines.index("cannot be read")
    rows = lines[header + 1 : last]
    assert len(rows) == 16
    # Columns agree, and nothing is broken over lines or cut off at the right.
    assert max(cell_len(line) for line in lines[header:last]) <= width
    assert all(row.rstrip().endswith(("none", "unreadable", "models")) or "tiny" in row
               for row in rows)  # fmt: skip
    assert ("transfer syntax" in lines[header]) == (width == 140)
    assert "1.2.826" not in result.stdout
    assert "15 studies, 16 series" in lines[-1]
    for words in ("1 slice is missing", "   9 localiser", "  12 derived: ADC map", "this is CT"):
        assert words in result.stdout


def test_verbose_shows_identifiers_and_frames(cli: Cli, archive: Path, found: Any) -> None:
    text = cli("check", archive, "-v").stdout
    for image in found["images"]:
        assert image["series_uid"] in text
        assert image["study_uid"] in text
    assert "frame 1: echo 2 (TE 9.2 ms)" in text


def test_text_of_headers_cannot_command_the_terminal(cli: Cli, tmp_path: Path) -> None:
    import pydicom

    made = hostile_dicom.build("oblique", tmp_path / "a\x1b[31m")
    hostile_dicom.build("oblique", tmp_path / "a\x1b[31m" / "b", seed=1)
    for path in made.folder.glob("IM*"):
        d = pydicom.dcmread(path)
        d.SeriesDescription = "[red]\x1b]0;title\x07[/red]"
        d.save_as(path)
    result = cli("check", made.folder)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[red]" in result.stdout


def test_a_folder_of_one_series_is_shown_in_full(cli: Cli, tmp_path: Path) -> None:
    hostile_dicom.build("no images beside images", tmp_path)
    text = cli("check", tmp_path).stdout
    assert "32 x 28 x 12" in text
    assert "takes it" in text
    assert "1 structured report (study 1: 98)" in text
    assert "6 objects set aside" in text


def test_nothing_to_work_on(cli: Cli, tmp_path: Path) -> None:
    hostile_dicom.build("only a report", tmp_path / "report")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.nii").write_text("hello")
    places = [tmp_path / name for name in ("report", "text", "broken", "absent")]
    result = cli("check", *places, tmp_path / "report" / "sr.dcm", "--json")
    assert result.exit_code == 2
    report, text, broken, absent, file = json.loads(result.stdout)
    assert "structured report" in report["error"]
    assert "structured report" in file["error"]
    assert "none of its 1 files" in text["error"]
    assert broken["failed"][0]["path"].endswith("a.nii")
    assert "holds text" in broken["failed"][0]["error"]
    assert "no file or folder" in absent["error"]
    for entry in (report, text, broken, absent, file):
        assert entry["images"] == []
        assert set(entry) == set(report)
    shown = cli("check", *places)
    assert shown.exit_code == 2
    for entry in (report, text, absent):
        assert entry["error"] in shown.stdout


@pytest.mark.parametrize(
    ("kind", "words"),
    [("only a secondary capture", "secondary capture"), ("only a localiser", "localiser")],
)
def test_pictures_that_archives_set_aside(cli: Cli, tmp_path: Path, kind: str, words: str) -> None:
    """They are all that is there, so a run would read them."""
    hostile_dicom.build(kind, tmp_path)
    first = next(path for path in sorted(tmp_path.iterdir()) if path.is_file())
    for source in (tmp_path, first):
        result = cli("check", source, "--json")
        assert result.exit_code == 0
        image = json.loads(result.stdout)[0]["images"][0]
        assert any(words in problem for problem in image["problems"])


@pytest.mark.parametrize("kind", ["zip", "DICOMDIR", "zip in a folder"])
def test_packed_archives(cli: Cli, tmp_path: Path, kind: str) -> None:
    made = hostile_dicom.build(kind, tmp_path)
    (image,) = json.loads(cli("check", made.folder, "--json").stdout)[0]["images"]
    assert image["shape"] == [32, 28, 12]
    bomb = hostile_dicom.build("zip bomb", tmp_path / "b")
    result = cli("check", bomb.folder)
    assert result.exit_code == 2
    assert "would unpack to" in result.stdout


def test_bids_and_folders_of_nifti(cli: Cli, tmp_path: Path) -> None:
    hostile_cohorts.bids_dataset(tmp_path / "bids", subjects=2, sessions=2)
    (tmp_path / "bids" / "sub-01" / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    (found,) = json.loads(cli("check", tmp_path / "bids", "--json").stdout)
    assert found["kind"] == "bids"
    assert len(found["images"]) == 8
    assert {image["group"] for image in found["images"]} == {
        f"sub-0{subject}/ses-0{session}/anat" for subject in (1, 2) for session in (1, 2)
    }
    assert len(found["failed"]) == 1
    assert found["other_files"] == 8 + 3  # sidecars, and what describes the data set
    text = cli("check", tmp_path / "bids").stdout
    assert "sub-02/ses-01/anat/\n" in text
    assert "sub-02_ses-01_FLAIR.nii.gz" in text
    assert "8 images, " in text
    assert "8 usable by tiny-baseline" in text
    assert "1 file cannot be opened" in text


def test_dicom_and_nifti_side_by_side(cli: Cli, tmp_path: Path) -> None:
    hostile_cohorts.nifti_cohort(tmp_path / "nifti", 3)
    hostile_cohorts.cohort(tmp_path / "dicom", 2)
    text = cli("check", tmp_path).stdout
    assert "2 studies, 2 series, 3 images" in text
    assert "case-0002_FLAIR.nii.gz" in text


def test_a_wide_archive_is_a_row_per_series(cli: Cli, tmp_path: Path) -> None:
    hostile_cohorts.cohort(tmp_path / "many", 60)
    lines = cli("check", tmp_path / "many").stdout.splitlines()
    rows = lines[2 : lines.index("not taken by")]  # after the folder and the header
    assert [row.split()[0] for row in rows] == [str(study) for study in range(1, 61)]
    assert lines[-1] == "60 studies, 60 series, 60 usable by " + lines[-1].split(" by ", 1)[1]


def test_what_is_set_aside_in_a_study_without_images_has_no_place() -> None:
    entry = {"reason": "no pixels", "objects": 5, "series_number": "1", "group": ""}
    here = entry | {"group": "study 1", "series_number": None}
    assert _set_aside([entry], verbose=False) == ["   5 no pixels"]
    assert _set_aside([entry, here], verbose=False) == ["  10 no pixels (study 1: -; elsewhere)"]


def test_what_has_no_uid_says_so() -> None:
    image = {
        "kind": "dicom", "group": "study 1", "series_number": None, "study_uid": None,
        "series_uid": None,
    }  # fmt: skip
    assert _identifiers([image]) == ["study 1: no UID", "  series -: no UID"]
