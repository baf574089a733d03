"""Whole cohorts through the command line: what comes out, what is kept, what is done again."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

pytestmark = pytest.mark.slow
NAMES = (b"DOE", b"Doe", b"Jane", b"MRN-0")


def states(out: Path) -> dict[str, str]:
    with sqlite3.connect(out / "ledger.sqlite") as db:
        return dict(db.execute("SELECT id, state FROM cases"))


def contents(out: Path) -> dict[str, bytes]:
    """Every output that must be the same whenever and wherever it is made."""
    timed = ("run.json", "index.html", "summary.json", "summary.tsv", ".sqlite")
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and ".medgen" not in path.parts
        and not path.name.endswith(timed)
        and not path.name.startswith("run-")
    }


@pytest.fixture(scope="module")
def done(medgen_batch, pipeline, archives, tmp_path_factory) -> dict[str, Path]:
    """One finished run of each kind of archive."""
    root = tmp_path_factory.mktemp("done")
    for kind, archive in archives.items():
        finished = medgen_batch("run", pipeline, archive, "-o", root / kind)
        assert finished.returncode == 0, finished.stderr
    return {kind: root / kind for kind in archives}


@pytest.mark.parametrize("kind", ["dicom", "bids", "nifti"])
def test_every_case_is_done_and_lies_on_the_grid_of_its_input(done, archives, kind) -> None:
    summary = json.loads((done[kind] / "summary.json").read_text())
    assert {case["state"] for case in summary["cases"]} == {"done"}
    assert len(summary["cases"]) == {"dicom": 4, "bids": 2, "nifti": 3}[kind]
    for case in summary["cases"]:
        assert (done[kind] / case["thumbnail"]).exists()
        folder = done[kind] / case["folder"]
        (mask,) = [p for p in folder.glob("*_mask.nii.gz") if case["case"].split("/")[-1][:6] in
                   p.name or kind != "bids"]  # fmt: skip
        assert nib.load(mask).shape == (24, 28, 20)
        assert case["values"]["scan_score"] >= 0


def test_dicom_results_name_nobody_outside_the_objects_for_the_pacs(done) -> None:
    checked = 0
    for path in done["dicom"].rglob("*"):
        assert not any(name.decode() in str(path.relative_to(done["dicom"])) for name in NAMES)
        if path.is_file() and path.suffix != ".dcm":
            assert not any(name in path.read_bytes() for name in NAMES), path
            checked += 1
    assert checked > 30
    segmentation = next(done["dicom"].rglob("*_seg.dcm"))
    assert str(pydicom.dcmread(segmentation).PatientID).startswith("MRN-")


def test_bids_results_are_a_derivative(done) -> None:
    root = done["bids"]
    description = json.loads((root / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "medgen"
    (mask,) = root.glob("sub-01/ses-01/anat/*_mask.nii.gz")
    assert mask.name == "sub-01_ses-01_desc-anomalyFLAIR_mask.nii.gz"
    sidecar = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    (source,) = sidecar["Sources"]
    link = description["DatasetLinks"]["raw"]
    assert (root / link / source.removeprefix("bids:raw:")).exists()


def test_a_second_run_does_nothing_and_changes_nothing(
    done, medgen_batch, pipeline, archives
) -> None:
    before = {p: p.stat().st_mtime_ns for p in done["dicom"].rglob("*.dcm")}
    again = medgen_batch("run", pipeline, archives["dicom"], "-o", done["dicom"])
    assert again.returncode == 0 and "0 cases to do, 4 need no work" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in done["dicom"].rglob("*.dcm")} == before
    refused = medgen_batch("run", pipeline, archives["dicom"], "-o", done["dicom"], "--no-resume")
    assert refused.returncode == 2 and "holds a run already" in refused.stderr


def test_bad_cases_fail_alone_and_are_tried_again_when_mended(
    tmp_path, medgen_batch, pipeline, archives
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    shutil.copytree(archives["nifti"], archive)
    good = (archive / "case-0001_FLAIR.nii.gz").read_bytes()
    (archive / "case-0001_FLAIR.nii.gz").write_bytes(good[: len(good) // 2])
    (archive / "web page.nii.gz").write_bytes(b"<html>not found</html>")
    first = medgen_batch("run", pipeline, archive, "-o", out)
    assert first.returncode == 3
    assert states(out) == {
        "case-0000_FLAIR": "done", "case-0001_FLAIR": "failed", "case-0002_FLAIR": "done",
        "web page": "failed",
    }  # fmt: skip
    page = (out / "index.html").read_text()
    assert "web page or XML" in page
    # Failed cases stay failed until they are asked for again, or their file changes.
    (archive / "case-0001_FLAIR.nii.gz").write_bytes(good)
    (archive / "case-0003_FLAIR.nii.gz").write_bytes(good)
    second = medgen_batch("run", pipeline, archive, "-o", out)
    assert second.returncode == 3 and "2 cases to do" in second.stderr
    assert states(out)["case-0001_FLAIR"] == states(out)["case-0003_FLAIR"] == "done"
    assert not (out / ".medgen" / "drafts").exists()


def test_lost_outputs_and_changed_inputs_are_done_again_touched_ones_not(
    tmp_path, medgen_batch, pipeline, archives
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    shutil.copytree(archives["nifti"], archive)
    assert medgen_batch("run", pipeline, archive, "-o", out).returncode == 0
    before = contents(out)
    (out / "case-0000_FLAIR" / "findings.tsv").unlink()
    image = nib.load(archive / "case-0001_FLAIR.nii.gz")
    changed = nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine)
    nib.save(changed, archive / "case-0001_FLAIR.nii.gz")
    (archive / "case-0002_FLAIR.nii.gz").touch()
    again = medgen_batch("run", pipeline, archive, "-o", out)
    assert "2 cases to do, 1 needs no work" in again.stderr
    after = contents(out)
    assert after.keys() == before.keys()
    differ = {name.split("/")[0] for name in after if after[name] != before[name]}
    assert differ == {"case-0001_FLAIR"}


def test_one_folder_is_for_one_run(done, tmp_path, medgen_batch, pipeline, archives) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(pipeline.read_text() + "case: image\n".replace("case", "attempts").replace(
        "image", "2"))  # fmt: skip
    same = medgen_batch("run", other, archives["nifti"], "-o", done["nifti"])
    assert same.returncode == 0, same.stderr  # how often to try is not what is done
    other.write_text(pipeline.read_text().replace("report: false", "report: true"))
    refused = medgen_batch("run", other, archives["nifti"], "-o", done["nifti"])
    assert refused.returncode == 2 and "differs in: pipeline" in refused.stderr
    assert set(states(done["nifti"]).values()) == {"done"}


def test_shards_together_are_the_whole(tmp_path, medgen_batch, pipeline, archives, done) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        finished = medgen_batch(
            "run", pipeline, archives["nifti"], "-o", out, "--shard", f"{number}/2"
        )
        assert finished.returncode == 0, finished.stderr
    assert contents(out) == contents(done["nifti"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["done"] == 3
    whole = medgen_batch("run", pipeline, archives["nifti"], "-o", out)
    assert "0 cases to do" in whole.stderr  # what a shard did counts for the whole


def test_identifiers_only_on_request(tmp_path, medgen_batch, pipeline, archives, done) -> None:
    out = tmp_path / "out"
    shutil.copytree(done["dicom"], out)
    finished = medgen_batch("run", pipeline, archives["dicom"], "-o", out, "--keep-ids")
    assert finished.returncode == 0, finished.stderr
    assert b"MRN-00001" in (out / "summary.tsv").read_bytes()
    assert b"MRN-" not in (out / "ledger.sqlite").read_bytes()


def test_plan_and_status_write_nothing(tmp_path, medgen_batch, pipeline, archives, done) -> None:
    out = tmp_path / "out"
    planned = medgen_batch("plan", pipeline, archives["dicom"], "-o", out, "--json", "-q")
    facts = json.loads(planned.stdout)
    assert (facts["cases"], len(facts["to_do"]), facts["input"]) == (4, 4, "dicom")
    assert facts["estimated_seconds"] >= 0 and facts["memory_gb_per_case"] > 0.4
    assert not out.exists()
    before = {p: p.stat().st_mtime_ns for p in done["bids"].rglob("*")}
    assert "2 done" in medgen_batch("status", done["bids"]).stdout
    assert {p: p.stat().st_mtime_ns for p in done["bids"].rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "{pipeline}", "{tmp}/missing", "-o", "{tmp}/o"], "no file or folder"),
        (["run", "{tmp}/missing.yaml", "{nifti}", "-o", "{tmp}/o"], "cannot read the pipeline"),
        (["run", "{pipeline}", "{nifti}", "-o", "{nifti}/o"], "must not contain each other"),
        (["run", "{pipeline}", "{nifti}", "-o", "{tmp}/o", "--shard", "3/2"], "--shard must be"),
        (["run", "{pipeline}", "{nifti}", "-o", "{tmp}/o", "--device", "gpu"], "unknown device"),
        (["run", "{pipeline}", "{nifti}", "-o", "{tmp}/o", "--max-memory", "0.2"], "needs about"),
        (["run", "{pipeline}", "{nifti}", "-o", "{tmp}/o", "--scheduler", "x"], "must look like"),
        (["run", "{pipeline}", "{tmp}", "-o", "{tmp}/../o2"], "no readable DICOM"),
        (["status", "{tmp}"], "holds no run"),
        (["summarise", "{tmp}"], "holds no run"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    tmp_path, medgen_batch, pipeline, archives, arguments, expected
) -> None:
    tmp = tmp_path / "t"
    tmp.mkdir()
    names = {"pipeline": pipeline, "tmp": tmp, "nifti": archives["nifti"]}
    finished = medgen_batch(*[word.format(**names) for word in arguments])
    assert finished.returncode == 2, finished.stderr
    assert expected in finished.stderr and "Traceback" not in finished.stderr
    assert not list(tmp.iterdir()) and not (tmp_path / "o2").exists()


def test_what_is_no_longer_true_does_not_stay(tmp_path, medgen_batch, pipeline, archives) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    scan = archive / "case.nii.gz"
    good = (archives["nifti"] / "case-0000_FLAIR.nii.gz").read_bytes()
    scan.write_bytes(good)
    assert medgen_batch("run", pipeline, archive, "-o", out).returncode == 0
    assert list((out / "case").glob("*_map.nii.gz"))
    scan.write_bytes(good[: len(good) // 2])  # its header still promises a scan
    broken = medgen_batch("run", pipeline, archive, "-o", out)
    assert broken.returncode == 3 and states(out) == {"case": "failed"}
    assert not list((out / "case").glob("*_map.nii.gz")), "a result of another input"
    row = json.loads((out / "summary.json").read_text())["cases"][0]
    assert row["folder"] is None and not any(row["values"].values())


def test_a_lost_object_of_a_copy_is_written_again(tmp_path, medgen_batch, archives) -> None:
    out = tmp_path / "out"
    copy = ("run", "pipelines/deidentify_archive.yaml", archives["dicom"], "-o", out)
    root = Path(__file__).resolve().parents[2]
    assert medgen_batch(*copy, cwd=root).returncode == 0
    objects = sorted(out.rglob("*.dcm"))
    assert len(objects) == 80
    before = {path: path.read_bytes() for path in objects}
    objects[7].unlink()
    again = medgen_batch(*copy, cwd=root)
    assert again.returncode == 0 and "1 case to do, 3 need no work" in again.stderr
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.dcm"))} == before
