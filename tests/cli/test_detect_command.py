"""`medgen detect-anomalies` from end to end: what it writes, prints and leaves alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tiny_packages import Cli, phantom

import medgen
from medgen.io import write_dicom_series, write_nifti
from medgen.run_record import hash_file

NAMES = {
    "sub-01_FLAIR_desc-anomaly_map.nii.gz", "sub-01_FLAIR_desc-anomaly_mask.nii.gz",
    "findings.json", "findings.tsv", "run.json", "overview.png", "report.html",
}  # fmt: skip
BASELINE = ("--model", "tiny-baseline")


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def out(scan: Path, shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of one run through the Python interface."""
    folder = tmp_path_factory.mktemp("out") / "made"
    medgen.detect_anomalies(scan, shelf / "tiny-baseline").save(folder)
    return folder


def test_writes_everything_on_the_grid_of_the_scan(cli: Cli, scan: Path, tmp_path: Path) -> None:
    result = cli("detect-anomalies", scan, "-o", tmp_path / "new" / "out", *BASELINE)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "out"
    assert {path.name for path in folder.iterdir()} == NAMES
    assert str(folder / "report.html") in result.stdout
    source = nib.load(scan)
    for name in NAMES:
        if name.endswith(".nii.gz"):
            written = nib.load(folder / name)
            assert written.shape == source.shape
            assert np.abs(written.affine - source.affine).max() < 1e-4
    assert nib.load(folder / "sub-01_FLAIR_desc-anomaly_map.nii.gz").get_data_dtype() == np.float32
    assert nib.load(folder / "sub-01_FLAIR_desc-anomaly_mask.nii.gz").get_data_dtype() == np.uint8


def test_finds_the_lesion_that_was_planted(out: Path) -> None:
    truth = phantom().lesion
    scores = np.asarray(nib.load(out / "sub-01_FLAIR_desc-anomaly_map.nii.gz").dataobj)
    mask = np.asarray(nib.load(out / "sub-01_FLAIR_desc-anomaly_mask.nii.gz").dataobj) > 0
    assert scores[truth].mean() > 0.9 > scores[scores > 0].mean()
    assert (mask & truth).any()


def test_findings_say_the_same_in_json_and_tsv(out: Path) -> None:
    summary = loaded(out / "findings.json")
    with (out / "findings.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == len(summary["findings"]) >= 1
    for row, finding in zip(rows, summary["findings"], strict=True):
        assert float(row["volume_mm3"]) == pytest.approx(finding["volume_mm3"], rel=1e-5)
        assert float(row["centroid_y_mm"]) == pytest.approx(finding["centroid_mm"][1], rel=1e-4)
    mask = nib.load(out / "sub-01_FLAIR_desc-anomaly_mask.nii.gz")
    voxels = int(np.count_nonzero(np.asarray(mask.dataobj)))
    total = sum(finding["volume_mm3"] for finding in summary["findings"])
    assert total == pytest.approx(voxels * 6.0**3)
    # Nine normal scans, so p is a multiple of a tenth.
    assert summary["p_value"] * 10 == pytest.approx(round(summary["p_value"] * 10))


def test_run_record_owns_up_to_everything(out: Path, scan: Path, shelf: Path) -> None:
    record = loaded(out / "run.json")
    assert record["inputs"] == [{"name": scan.name, "files": 1, "sha256": hash_file(scan)}]
    hashes = {entry["name"]: entry["sha256"] for entry in record["outputs"]}
    assert hashes == {name: hash_file(out / name) for name in NAMES - {"run.json"}}
    assert record["model"]["sha256"] == hash_file(shelf / "tiny-baseline" / "medgen.json")
    assert record["device"] == "cpu"
    assert record["fallbacks"] == []
    assert record["peak_memory_gb"] > 0
    assert record["versions"]["torch"]
    assert set(record["timings_s"]) >= {"read and import", "prepare", "predict", "write"}
    assert str(scan.parent) not in (out / "run.json").read_text()


def test_the_same_scan_gives_the_same_files(
    cli: Cli, scan: Path, out: Path, tmp_path: Path
) -> None:
    cli("detect-anomalies", scan, "-o", tmp_path / "again", "--no-report", *BASELINE)
    for name in NAMES:
        if name.endswith((".nii.gz", ".json", ".tsv")) and name != "run.json":
            same = (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
            assert same, f"{name} differs between two runs"


def test_no_report_draws_nothing(cli: Cli, scan: Path, tmp_path: Path) -> None:
    cli("detect-anomalies", scan, "-o", tmp_path / "out", "--no-report", *BASELINE)
    assert {p.name for p in (tmp_path / "out").iterdir()} == NAMES - {"overview.png", "report.html"}


def test_json_on_stdout_is_only_json(cli: Cli, scan: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "out", "--no-report", "--json", "-q")
    result = cli("detect-anomalies", scan, *words, *BASELINE)
    summary = json.loads(result.stdout)
    assert result.stderr == ""
    assert set(summary["outputs"]) == {"map", "mask", "findings", "findings_table", "run"}
    assert all(Path(path).is_file() for path in summary["outputs"].values())


def test_threshold_can_be_chosen(cli: Cli, scan: Path, tmp_path: Path) -> None:
    for threshold, expected in ((2, False), (0.5, True)):
        folder = tmp_path / str(threshold)
        words = ("-o", folder, "--no-report", "--threshold", threshold)
        assert cli("detect-anomalies", scan, *words, *BASELINE).exit_code == 0
        summary = loaded(folder / "findings.json")
        assert bool(summary["findings"]) == expected
        assert "chosen by the user" in summary["threshold_meaning"]


def test_restored_scan_is_written_when_the_model_makes_one(
    cli: Cli, scan: Path, tmp_path: Path
) -> None:
    folder, words = tmp_path / "out", ("--no-report", "--overwrite")
    cli("detect-anomalies", scan, "-o", folder, *words, "--model", "tiny-restore")
    restored = folder / "sub-01_FLAIR_desc-restored.nii.gz"
    source = np.asarray(nib.load(scan).dataobj)
    values = np.asarray(nib.load(restored).dataobj)
    assert values.shape == source.shape
    map_ = np.asarray(nib.load(folder / "sub-01_FLAIR_desc-anomaly_map.nii.gz").dataobj)
    inside = map_ > 0
    assert values[inside].mean() == pytest.approx(source[inside].mean(), rel=0.25)
    # An earlier run's output must not stay beside the results of a model that makes none.
    cli("detect-anomalies", scan, "-o", folder, *words, *BASELINE)
    assert not restored.exists()


def test_overwrite_replaces_only_its_own_files(cli: Cli, scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    words = ("detect-anomalies", scan, "-o", folder, "--no-report", *BASELINE)
    assert cli(*words).exit_code == 0
    before = hash_file(folder / "run.json")
    refused = cli(*words)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert hash_file(folder / "run.json") == before
    assert cli(*words, "--overwrite").exit_code == 0
    assert (folder / "notes.txt").read_text() == "mine"


def test_dry_run_says_and_does_nothing(cli: Cli, scan: Path, tmp_path: Path) -> None:
    result = cli("detect-anomalies", scan, "-o", tmp_path / "out", "--dry-run", *BASELINE)
    assert result.exit_code == 0
    assert "sub-01_FLAIR_desc-anomaly_map.nii.gz" in result.stdout
    assert "if the model restores, sub-01_FLAIR_desc-restored.nii.gz" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["res[final]", "[/x]"])
def test_brackets_in_paths_are_no_markup(cli: Cli, scan: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / name / scan.name
    source.parent.mkdir(parents=True)
    source.write_bytes(scan.read_bytes())
    out = tmp_path / name / "out"
    words = ("detect-anomalies", source, "-o", out, *BASELINE)
    dry = cli(*words, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert str(source) in dry.stdout
    assert str(out) in dry.stdout
    result = cli(*words)
    assert result.exit_code == 0, result.output
    assert f"Written to {out}: " in result.stdout
    assert f"Look at {out / 'report.html'}" in result.stdout


def test_one_frame_of_a_4d_file(cli: Cli, tmp_path: Path) -> None:
    image = phantom().image
    frames = np.stack([image.voxels[0][::-1], image.voxels[0]], axis=-1)
    nib.save(nib.Nifti1Image(frames, image.affine), tmp_path / "bold.nii.gz")
    words = ("-o", tmp_path / "out", "--frame", 1, "--no-report")
    assert cli("detect-anomalies", tmp_path / "bold.nii.gz", *words, *BASELINE).exit_code == 0
    scores = np.asarray(nib.load(tmp_path / "out" / "bold_desc-anomaly_map.nii.gz").dataobj)
    assert scores.shape == image.geometry.shape
    assert scores[phantom().lesion].mean() > 0.9


def test_a_picture(cli: Cli, tmp_path: Path) -> None:
    # A picture's pixels count as 1 mm; the model looks at 6 mm.
    pixels = np.kron(phantom().image.voxels[0][:, :, 10].T, np.ones((6, 6)))
    Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8)).save(tmp_path / "slice.png")
    result = cli("detect-anomalies", tmp_path / "slice.png", "-o", tmp_path / "out", *BASELINE)
    assert result.exit_code == 0, result.output
    written = nib.load(tmp_path / "out" / "slice_desc-anomaly_map.nii.gz")
    assert written.shape[:2] == pixels.T.shape


def test_dicom_names_are_not_repeated(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "DOE_JOHN_1950"
    write_dicom_series(folder, phantom().image, seed="one")
    words = ("-o", tmp_path / "out", "--no-report")
    result = cli("detect-anomalies", folder, *words, *BASELINE)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "scan_desc-anomaly_map.nii.gz").exists()
    for path in (tmp_path / "out").glob("*.json"):
        assert "DOE" not in path.read_text()


def test_a_chosen_series(cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):
        write_dicom_series(
            tmp_path / "dicom" / str(number), phantom(number).image, seed="one",
            series_number=number,
        )  # fmt: skip
    words = ("-o", tmp_path / "out", "--no-report", "--series", 2)
    result = cli("detect-anomalies", tmp_path / "dicom", *words, *BASELINE)
    assert result.exit_code == 0, result.output


def test_interrupting_leaves_nothing(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medgen.tasks.detect.run_model", interrupt)
    result = cli("detect-anomalies", scan, "-o", tmp_path / "a" / "out", *BASELINE)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_defects_are_one_line_without_debug(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.tasks.detect.run_model", lambda *_, **__: 1 / 0)
    words = ("detect-anomalies", scan, "-o", tmp_path / "out", *BASELINE)
    result = cli(*words)
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(cli(*words, "--debug").exception, ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


def test_a_scan_in_memory_is_saved_too(shelf: Path, tmp_path: Path) -> None:
    detection = medgen.detect_anomalies(phantom().image, shelf / "tiny-baseline")
    paths = detection.save(tmp_path / "out", report=False)
    assert paths["map"] == tmp_path / "out" / "scan_desc-anomaly_map.nii.gz"
    assert loaded(paths["run"])["inputs"] == []


def test_written_maps_open_again(out: Path) -> None:
    volume = medgen.read(out / "sub-01_FLAIR_desc-anomaly_map.nii.gz")
    assert volume.voxels.max() <= 1.0
    write_nifti(out.parent / "copy.nii.gz", volume.voxels[0], volume.geometry, like=volume)


def test_two_models_side_by_side(cli: Cli, scan: Path, tmp_path: Path) -> None:
    words = ("detect-anomalies", scan, "-o", tmp_path / "out", "--no-report")
    result = cli(*words, "--compare", "tiny-baseline", "tiny-restore")
    assert result.exit_code == 0, result.output
    assert "tiny-baseline: scan score" in result.stdout
    assert "Rank correlation" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json", "tiny-baseline", "tiny-restore",
    }  # fmt: skip
    again = cli(*words, "--compare", "tiny-baseline", "tiny-restore")
    assert again.exit_code == 2
    assert "already holds" in again.stderr
    for more, problem in (
        (("--compare", "tiny-baseline", "tiny-baseline"), "both models are"),
        (("--compare", "tiny-baseline", "tiny-restore", "--threshold", 1), "--threshold belongs"),
        (("--compare", "tiny-baseline", "tiny-restore", "--model", "x"), "--model belongs"),
    ):
        refused = cli("detect-anomalies", scan, "-o", tmp_path / "new", *more)
        assert refused.exit_code == 2
        assert problem in refused.stderr
    assert not (tmp_path / "new").exists()
