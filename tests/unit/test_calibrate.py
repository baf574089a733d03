"""A site's own normals: a new package that names its parent, and promises that hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import stats
from tiny_packages import SPACING_MM, phantom, save_intensity, save_restore

from medgen import detect_anomalies
from medgen.errors import InputError, LeakageError
from medgen.io import write_dicom_series, write_nifti
from medgen.package import ModelPackage, load_package, verify_package
from medgen.run_record import hash_name
from medgen.scoring.conformal import p_values, rank_of_limit
from medgen.tasks.calibrate import Calibrated, calibrate
from medgen.tasks.drift import drift_check
from medgen.tasks.normal_scans import find_scans

RATE = 0.2
CONTROLS = 14


def write_heads(folder: Path, seeds: range, lesion_radius_mm: float | None = None) -> Path:
    for seed in seeds:
        image = phantom(seed, lesion_radius_mm).image
        write_nifti(folder / f"head{seed:02d}.nii.gz", image.voxels[0], image.geometry)
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def parent(shelf: Path) -> ModelPackage:
    """A tiny restoration network: its scores differ from head to head."""
    return save_restore(shelf / "tiny-restore")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("data") / "healthy", range(CONTROLS))


@pytest.fixture(scope="module")
def made(parent: ModelPackage, healthy: Path, shelf: Path) -> Calibrated:
    return calibrate(healthy, parent, shelf / "tiny-site", false_positive_rate=RATE)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("data") / "held-out", range(100, 124))


def test_the_package_names_its_parent_and_gives_the_same_maps(
    made: Calibrated, parent: ModelPackage, shelf: Path
) -> None:
    package = load_package(shelf / "tiny-site")
    named = package.manifest.parent
    assert named is not None
    assert (named.name, named.version, named.sha256) == ("tiny-restore", "0.1.0", parent.sha256)
    assert named.controls == CONTROLS
    people = {hash_name(f"head{seed:02d}") for seed in range(CONTROLS)}
    assert people < set(named.hashed_ids)
    assert len(named.hashed_ids) == 2 * CONTROLS  # of each also the file's contents
    assert package.manifest.name == "tiny-site"
    assert (
        package.manifest.sha256["golden/expected.safetensors"]
        == (parent.manifest.sha256["golden/expected.safetensors"])
    )
    assert verify_package(package) < 1e-3
    assert load_package(parent.folder).sha256 == parent.sha256
    card = (package.folder / "CARD.md").read_text()
    for words in (parent.sha256, made.calibration.threshold_rule, "### Restore", "calibration.png"):
        assert words in card
    assert (package.folder / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_detection_uses_the_new_reference(made: Calibrated, healthy: Path) -> None:
    found = detect_anomalies(healthy / "head03.nii.gz", made.package.folder)
    assert found.threshold == made.calibration.threshold
    assert found.threshold_meaning == made.calibration.threshold_rule
    assert "at most 20 % of normal people" in found.threshold_meaning
    assert found.score == pytest.approx({n: s for n, _, s in made.scores}["head03"])
    assert found.p_value == made.calibration.p_value(found.score)


def test_the_same_scans_give_the_same_package(
    made: Calibrated, parent: ModelPackage, healthy: Path, tmp_path: Path
) -> None:
    again = calibrate(healthy, parent, tmp_path / "tiny-site", false_positive_rate=RATE)
    assert again.package.sha256 == made.package.sha256


def test_the_promises_hold_on_new_heads(made: Calibrated, held_out: Path, tmp_path: Path) -> None:
    """Both counts follow beta-binomial laws; 0.999 of them lie below what is asserted."""
    found = drift_check(held_out, made.package)
    heads = len(found.rows)
    assert heads == 24
    rank = rank_of_limit(CONTROLS, RATE)
    law = stats.betabinom(heads, CONTROLS + 1 - rank, rank)
    assert found.people_with_findings <= law.ppf(0.999)
    assert law.mean() / heads <= RATE + 1e-9
    # Uniform p-values: the exact test of the whole distribution sees nothing.
    assert found.drift.distance_p > 0.01
    assert found.drift.verdict == "no drift seen"
    expected = p_values(made.calibration.scan_scores, [row.score for row in found.rows])
    assert [row.p_value for row in found.rows] == expected.tolist()
    found.save(tmp_path / "drift", command="calibrate --drift FOLDER")
    summary = json.loads((tmp_path / "drift" / "drift.json").read_text())
    assert summary["verdict"] == "no drift seen"
    assert len((tmp_path / "drift" / "drift.tsv").read_text().splitlines()) == 1 + heads
    assert (tmp_path / "drift" / "drift.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "drift" / "run.json").read_text())
    assert len(record["inputs"]) == heads


def test_another_kind_of_scan_is_drift(made: Calibrated, tmp_path: Path) -> None:
    """The same heads with the noise of a worse scanner."""
    generator = np.random.default_rng(0)
    for seed in range(200, 214):
        image = phantom(seed, None).image
        noisy = image.voxels[0] * generator.uniform(0.4, 1.6, image.geometry.shape)
        write_nifti(tmp_path / f"{seed}.nii.gz", noisy.astype(np.float32), image.geometry)
    found = drift_check(tmp_path, made.package)
    assert found.drift.verdict == "drift"
    assert found.sentence.startswith("Drift: the batch scores ")
    assert "disease" in found.sentence


def test_scans_of_the_reference_cannot_be_a_batch(made: Calibrated, healthy: Path) -> None:
    with pytest.raises(LeakageError, match="calibrated on head00 and 13 more"):
        drift_check(healthy, made.package)


def test_they_are_known_by_their_contents_too(
    made: Calibrated, healthy: Path, tmp_path: Path
) -> None:
    scan = sorted(healthy.glob("*.nii.gz"))[0]
    (tmp_path / "another.nii.gz").write_bytes(scan.read_bytes())
    with pytest.raises(LeakageError, match="calibrated on another"):
        drift_check(tmp_path, made.package)


def test_too_few_people_are_refused_with_the_number_it_takes(
    parent: ModelPackage, healthy: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="at least 19 normal people, there are 14") as caught:
        calibrate(healthy, parent, tmp_path / "new")
    assert "0.067 or more" in str(caught.value)
    with pytest.raises(InputError, match="at least 20 normal scans"):
        calibrate(healthy, parent, tmp_path / "new", target_false_findings=0.05)
    # Several scans of one person are one person.
    with pytest.raises(InputError, match="there is 1"):
        calibrate(
            healthy, parent, tmp_path / "new", false_positive_rate=0.2, group_pattern="^(head)"
        )
    assert not (tmp_path / "new").exists()


def test_a_target_of_findings_and_several_scans_of_a_person(
    parent: ModelPackage, healthy: Path, tmp_path: Path
) -> None:
    found = calibrate(
        healthy, parent, tmp_path / "pairs", target_false_findings=1.0, group_pattern=r"^head(\d)"
    )
    calibration = found.calibration
    assert calibration.subjects == len(calibration.scan_scores) == 2
    assert calibration.scans == CONTROLS
    tens = {
        name[4]: [s for n, _, s in found.scores if n[4] == name[4]] for name, *_ in found.scores
    }
    assert list(calibration.scan_scores) == sorted(max(scores) for scores in tens.values())
    rule = calibration.threshold_rule
    assert "On 14 scans of 2 subjects" in rule
    assert "1/3 = 0.33" in rule
    assert "highest score of each subject" in rule


def test_the_shift_from_the_parents_reference_is_told(
    healthy: Path, shelf: Path, tmp_path: Path
) -> None:
    baseline = save_intensity(shelf / "tiny-baseline")
    found = calibrate(healthy, baseline, tmp_path / "site", false_positive_rate=RATE)
    assert found.shift is not None
    assert found.shift.reference == 9
    assert "By the earlier calibration, on 9 normals" in (tmp_path / "site/CARD.md").read_text()


def test_a_scan_that_cannot_be_used_is_told_and_the_others_go_on(
    parent: ModelPackage, healthy: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(healthy, tmp_path / "scans"))
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    found = calibrate(folder, parent, tmp_path / "site", false_positive_rate=RATE)
    assert list(found.skipped) == ["broken"]
    assert len(found.scores) == CONTROLS
    assert "1 scans could not be used" in (tmp_path / "site" / "CARD.md").read_text()


def test_copies_and_people_of_the_training_are_refused(
    parent: ModelPackage, healthy: Path, tmp_path: Path, shelf: Path
) -> None:
    folder = Path(shutil.copytree(healthy, tmp_path / "scans"))
    shutil.copy(folder / "head00.nii.gz", folder / "twin.nii.gz")
    with pytest.raises(LeakageError, match="head00 and twin are the same image"):
        calibrate(folder, parent, tmp_path / "site", false_positive_rate=RATE)
    data = {"name": "heads", "licence": "none", "cases": 1, "hashed_ids": (hash_name("head05"),)}
    knows = save_restore(shelf / "knows-head-5", training_data=(data,))
    with pytest.raises(LeakageError, match="trained on head05"):
        calibrate(healthy, knows, tmp_path / "site", false_positive_rate=RATE)
    assert not (tmp_path / "site").exists()


def test_an_output_that_will_be_refused_is_refused_before_the_work(
    parent: ModelPackage, healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.tasks.normal_scans.run_model", lambda *_, **__: 1 / 0)
    (tmp_path / "there").mkdir()
    for name, problem in (("there", "exists already"), ("Our_Site", "lower-case words")):
        with pytest.raises(InputError, match=problem):
            calibrate(healthy, parent, tmp_path / name, false_positive_rate=RATE)
    with pytest.raises(InputError, match="either a false-positive rate or"):
        calibrate(healthy, parent, tmp_path / "a", false_positive_rate=0.2, target_false_findings=1)


def test_slices_get_a_reference_of_slices(shelf: Path, tmp_path: Path) -> None:
    baseline = save_intensity(shelf / "tiny-pictures", scoring={"evidence": "score", "median": 3})
    (tmp_path / "slices").mkdir()
    for seed in range(5):
        pixels = np.kron(phantom(seed, None).image.voxels[0][:, :, 10].T, np.ones((6, 6)))
        picture = Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8))
        picture.save(tmp_path / "slices" / f"head{seed}.png")
    found = calibrate(tmp_path / "slices", baseline, tmp_path / "flat", false_positive_rate=0.2)
    assert found.calibration.spatial_dims == 2
    assert found.shift is None  # the parent's reference is of volumes
    flat = detect_anomalies(tmp_path / "slices" / "head2.png", tmp_path / "flat")
    assert flat.p_value == found.calibration.p_value(flat.score)
    volume = detect_anomalies(phantom().image, tmp_path / "flat")
    assert volume.p_value is None
    assert "no error rate is known for a 3-D scan" in volume.threshold_meaning
    assert SPACING_MM == 6.0
    mixed = write_heads(tmp_path / "slices", range(7, 8))
    with pytest.raises(InputError, match="some of the normal scans are slices"):
        calibrate(mixed, baseline, tmp_path / "both", false_positive_rate=0.2)


def test_whose_a_scan_is(tmp_path: Path) -> None:
    def people(folder: Path, pattern: str | None = None) -> list[str]:
        return [scan.person for scan in find_scans(folder, pattern)]

    for name in ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/x.nii.gz", "y.nii"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    assert people(tmp_path / "a") == ["sub-01", "sub-01", "y"]
    (tmp_path / "b").mkdir()
    for name in ("p1_1.png", "p1_2.png", "p2_1.png"):
        (tmp_path / "b" / name).touch()
    assert people(tmp_path / "b") == ["p1_1", "p1_2", "p2_1"]
    assert people(tmp_path / "b", "^([^_]+)_") == ["p1", "p1", "p2"]
    (tmp_path / "b" / "groups.csv").write_text("file,group\np1_1.png,A\np1_2.png,B\np2_1.png,B\n")
    assert people(tmp_path / "b") == ["A", "B", "B"]
    for number in (1, 2):  # two studies of one synthetic patient
        write_dicom_series(
            tmp_path / "c" / f"DOE^{number}", phantom(number).image, seed=f"{number}"
        )
    scans = find_scans(tmp_path / "c")
    assert [scan.person for scan in scans] == ["person 1", "person 1"]
    assert [scan.name for scan in scans] == ["study 1, series 1", "study 2, series 1"]
    for file in (tmp_path / "c" / "DOE^2").iterdir():
        header = pydicom.dcmread(file)
        header.PatientID = "another"
        header.save_as(file)
    scans = find_scans(tmp_path / "c")
    assert [scan.person for scan in scans] == ["person 1", "person 2"]
    shown = " ".join(f"{scan.name} {scan.person}" for scan in scans)
    assert "DOE" not in shown
    assert "another" not in shown
