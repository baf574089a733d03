"""`medgen calibrate` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_packages import Cli, phantom

from medgen.io import write_nifti

MODEL = ("--model", "tiny-restore")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    for seed in range(4):
        image = phantom(seed, None).image
        write_nifti(folder / f"head{seed}.nii.gz", image.voxels[0], image.geometry)
    return folder


def test_the_model_is_chosen_by_the_first_scan(cli: Cli, healthy: Path, tmp_path: Path) -> None:
    found = cli("calibrate", "--controls", healthy, "-o", tmp_path / "new")
    assert found.exit_code == 2
    assert "model brain-mr, for brain MR" in found.stderr
    assert "there are 4" in found.stderr
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("L", (64, 64)).save(pictures / "a.png")
    unsure = cli("calibrate", "--controls", pictures, "-o", tmp_path / "new")
    assert unsure.exit_code == 2
    assert "could be of several kinds" in unsure.stderr


def test_from_controls_to_a_detection(cli: Cli, healthy: Path, scan: Path, tmp_path: Path) -> None:
    words = ("--controls", healthy, "-o", tmp_path / "our-site", "--false-positive-rate", 0.2)
    result = cli("calibrate", *words, *MODEL)
    assert result.exit_code == 0, result.output
    assert "our-site, calibrated from tiny-restore 0.1.0" in result.stdout
    assert "at most 20 % of normal people" in " ".join(result.stdout.split())
    assert "Highest scan scores, to be looked at once more: head" in result.stderr
    assert cli("models", "verify", tmp_path / "our-site").exit_code == 0
    assert "tiny-restore" in cli("models", "show", tmp_path / "our-site").stdout
    found = cli(
        "detect-anomalies", scan, "-o", tmp_path / "out", "--model", tmp_path / "our-site",
        "--no-report", "--json",
    )  # fmt: skip
    assert json.loads(found.stdout)["p_value"] * 5 == pytest.approx(
        round(json.loads(found.stdout)["p_value"] * 5)
    )
    again = cli("calibrate", *words, *MODEL)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    drifted = cli(
        "calibrate", "--drift", scan, "--model", tmp_path / "our-site", "-o", tmp_path / "drift",
        "--json",
    )  # fmt: skip
    assert drifted.exit_code == 0, drifted.output
    assert json.loads(drifted.stdout)["verdict"] == "too few scans to tell"
    assert json.loads((tmp_path / "drift/drift.json").read_text()) == json.loads(drifted.stdout)
    assert {path.name for path in (tmp_path / "drift").iterdir()} == {
        "drift.tsv", "drift.json", "drift.png", "run.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "give either --controls FOLDER or --drift FOLDER"),
        (("--controls", "healthy", "--drift", "healthy"), "give either"),
        (("--controls", "healthy"), "the new package needs a name"),
        (("--controls", "healthy", "-o", "new"), "takes at least 19 normal people, there are 4"),
        (("--controls", "healthy", "-o", "new", "--level", "0.1"), "--level belongs to --drift"),
        (("--controls", "nowhere", "-o", "new"), "there is no file or folder"),
        (("--controls", "healthy", "-o", "healthy/new"), "lies inside the input"),
        (("--drift", "healthy"), "was not calibrated"),
        (("--drift", "healthy", "--model", "auto"), "--drift needs the model"),
        (("--drift", "healthy", "--level", "0"), "--level must lie between 0 and 1"),
        (("--controls", "healthy", "-o", "new", "--target-false-findings", "inf"), "be a number"),
        (("--drift", "healthy", "--false-positive-rate", "0.1"), "set with --controls"),
        (("--controls", "healthy", "-o", "new", "--model", "brain-denoise"), "detect-anomalies"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(
    cli: Cli, healthy: Path, tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    places = {"healthy": healthy, "new": tmp_path / "new", "healthy/new": healthy / "new"}
    found = cli("calibrate", *MODEL, *(places.get(word, word) for word in words))
    assert found.exit_code == 2, found.output
    assert problem in found.stderr
    assert not list(tmp_path.iterdir())
