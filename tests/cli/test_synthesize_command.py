"""``medgen synthesize`` as a person calls it, and everything wrong that they may ask for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny_packages import Cli, save_features, save_generator, save_intensity

LABELS = ("background", "lesion")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that make, one that finds and one that measures."""
    folder = tmp_path_factory.mktemp("makers")
    save_generator(folder / "tiny-colon")
    save_generator(
        folder / "tiny-brain", "stylegan2", conditions=("healthy:t1", "lesion:t1", "lesion:flair")
    )
    save_generator(folder / "tiny-painter", "spade", labels=LABELS, conditions=())
    save_intensity(folder / "tiny-finder")
    save_features(folder / "tiny-features")
    return folder


@pytest.fixture(autouse=True)
def only_these(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped models would make conditions ambiguous."""
    monkeypatch.setattr("medgen.package.files.search_folders", lambda: [shelf])


def test_one_line_makes_images(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("synthesize", "--condition", "cancer", "-n", 3, "-o", out, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "tiny-colon, the only model" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "contact_sheet.png", "gallery.html", "images", "manifest.jsonl", "run.json",
    ]  # fmt: skip
    assert len(list((out / "images").iterdir())) == 3
    page = (out / "gallery.html").read_text()
    assert "SYNTHETIC" in page
    assert "http" not in page.replace("http-equiv", "")
    command = json.loads((out / "run.json").read_text())["command"]
    assert "--condition cancer" in command
    assert str(tmp_path) not in command


def test_json_and_dry_run(cli: Cli, tmp_path: Path) -> None:
    words = ("synthesize", "-c", "lesion", "--contrast", "flair", "--json", "-n", 2)
    plan = json.loads(cli(*words, "-o", tmp_path / "out", "--dry-run").stdout)
    assert plan["model"].startswith("tiny-brain")
    assert plan["conditions"] == ["lesion:flair"]
    assert not (tmp_path / "out").exists()
    made = json.loads(cli(*words, "-o", tmp_path / "out", "--device", "cpu").stdout)
    assert made["images"] == 2
    assert all(Path(path).exists() for path in made["outputs"].values())


def test_conditions_are_listed(cli: Cli) -> None:
    text = cli("synthesize", "--list-conditions").stdout
    assert "lesion:flair" in text
    listed = json.loads(cli("synthesize", "--list-conditions", "--json").stdout)
    assert listed["tiny-colon"] == ["cancer", "benign"]
    assert "tiny-finder" not in listed


@pytest.mark.parametrize("words", [
    ("-m", "tiny-brain", "-c", "lesion:t1", "--interpolate", "0", "5", "--steps", "3"),
    ("-m", "tiny-brain", "-c", "lesion:t1", "--grid", "--steps", "1"),
    ("-m", "tiny-painter", "-n", "2", "--format", "nifti"),
    ("-m", "tiny-painter", "-n", "2", "--format", "dicom"),
    ("-m", "tiny-colon", "-n", "2", "--format", "dicom"),
], ids=lambda words: " ".join(words[-3:]))  # fmt: skip
def test_every_kind_of_output(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    result = cli("synthesize", *words, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert all((tmp_path / "out" / json.loads(line)["file"]).exists() for line in lines)


@pytest.mark.parametrize(("words", "problem"), [
    ("-c canser", "Did you mean 'cancer'"),
    ("-c lesion --contrast t2", "contrast 't2'"),
    ("", "several models"),
    ("-m tiny-colon -c lesion", "no condition 'lesion'"),
    ("-m tiny-painter -c lesion", "no conditions"),
    ("-m tiny-finder", "needed is one for synthesize"),
    ("-m tiny-features", "needed is one for synthesize"),
    ("-m tiny-colom", "Did you mean 'tiny-colon'"),
    ("-c cancer -n 0", "at least 1"),
    ("-c cancer -n -7", "at least 1"),
    ("-c cancer -n 99999999", "GB"),
    ("-c cancer --seed -1", "seed must be"),
    ("-c cancer --seed 99999999999999", "seed must be"),
    ("-c cancer --truncation 1.5", "truncation must be"),
    ("-c cancer --truncation nan", "truncation must be"),
    ("-c cancer --format bmp", "unknown format"),
    ("-c cancer --format nifti", "colour"),
    ("-c cancer --device tpu", "unknown device"),
    ("-c cancer --grid --interpolate 0 1", "only one of"),
    ("-c cancer --grid -n 4", "-n does not go with"),
    ("-c cancer --steps 4", "--steps goes with"),
    ("-c cancer --grid --steps 1000", "--steps must be"),
    ("-c cancer --interpolate 0 nowhere.png", "no image file"),
    ("-c cancer --interpolate 0 1 --steps 1", "--steps must be"),
    ("-m tiny-colon --grid", "one must be chosen"),
    (f"-c cancer --interpolate 0 {'9' * 5000}", "images are numbered"),
    (f"-c cancer --interpolate 0 {'a' * 300}", "File name too long"),
    ("-c cancer --set a=b", "--set goes with"),
    ("-c cancer --arithmetic a-b", "with blanks"),
    ("-c cancer --arithmetic a", "no set of images 'a'"),
    ("-c cancer --arithmetic a --set a", "NAME=FOLDER"),
    ("-c cancer --arithmetic a --set a=x --set a=y", "twice"),
    ("-c cancer --arithmetic a --set a=nowhere", "no folder"),
    ("-c cancer --masks nowhere", "cannot paint"),
    ("-m tiny-painter --masks nowhere", "no folder"),
    ("-c cancer --invert nowhere.png", "no image nowhere.png"),
    ("-m tiny-painter --invert nowhere.png", "cannot be inverted"),
])  # fmt: skip
def test_bad_requests_end_with_one_error_and_nothing_written(
    cli: Cli, tmp_path: Path, words: str, problem: str
) -> None:
    result = cli("synthesize", *words.split(), "-o", tmp_path / "out")
    assert result.exit_code == 2, result.stdout
    assert problem in " ".join(result.stderr.split())
    assert result.stderr.count("Error") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_needed_and_never_replaced_by_accident(cli: Cli, tmp_path: Path) -> None:
    assert "-o is missing" in cli("synthesize", "-c", "cancer").stderr
    words = ("synthesize", "-c", "cancer", "-n", 1, "-o", tmp_path / "out", "--device", "cpu")
    assert cli(*words).exit_code == 0
    again = cli(*words)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert cli(*words, "--overwrite").exit_code == 0


def test_a_real_image_is_inverted(cli: Cli, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "patient-name.png")
    result = cli(
        "synthesize", "-c", "cancer", "--invert", tmp_path / "patient-name.png",
        "-o", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "root mean squared difference" in result.stderr
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text()
    assert json.loads(manifest)["residual"] > 0
    assert "patient-name" not in manifest
    assert "patient-name" not in (tmp_path / "out" / "run.json").read_text()


def test_detectors_refuse_generators(cli: Cli, tmp_path: Path, scan: Path) -> None:
    result = cli("detect-anomalies", scan, "-o", tmp_path / "out", "--model", "tiny-colon")
    assert result.exit_code == 2
    assert "tiny-finder" in result.stderr
    assert not (tmp_path / "out").exists()


def test_models_of_all_tasks_are_listed_shown_and_verified(cli: Cli) -> None:
    listed = cli("models", "list").stdout
    assert all(task in listed for task in ("detect-anomalies", "synthesize", "features"))
    assert "lesion:flair" in cli("models", "show", "tiny-brain").stdout
    assert "lesion" in cli("models", "show", "tiny-painter").stdout
    assert cli("models", "show", "tiny-features").exit_code == 0
    verified = json.loads(cli("models", "verify", "--json").stdout)
    assert [entry["ok"] for entry in verified] == [True] * 5
