"""`medgen inpaint`, `super-resolve`, `denoise`, `translate`: what they write, print and refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from test_bad_input import CASES, assert_refused
from tiny_packages import RESTORERS, Cli, phantom, save_intensity, save_restorer

import medgen
from medgen import io
from medgen.errors import InputError
from medgen.io import write_dicom_series, write_nifti
from medgen.run_record import hash_file

NAME, NUMBER = "Doe^Jane", "ID-4711"
# The words of each command, and the word for its result.
VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "inpaint": (("--model", "tiny-inpaint", "--mask", "MASK"), "inpainted"),
    "super-resolve": (("--model", "tiny-super-resolve", "--scale", "2"), "superresolved"),
    "denoise": (("--model", "tiny-denoise"), "denoised"),
    "translate": (("--model", "tiny-translate", "--to", "t2"), "t2"),
}
COMMON = {"restoration.json", "run.json"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each task, and a detector."""
    folder = tmp_path_factory.mktemp("shelf")
    for task in RESTORERS:
        save_restorer(folder / f"tiny-{task}", task)
    save_restorer(folder / "tiny-t1-only", "denoise", restoration={"sources": ("t1",)})
    save_intensity(folder / "tiny-baseline")
    return folder


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = phantom()
    path = tmp_path_factory.mktemp("mask") / "lesion.nii.gz"
    return write_nifti(path, image.lesion, image.image.geometry, kind="label")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head as DICOM, in a folder and with a header that name a person."""
    folder = tmp_path_factory.mktemp("dicom") / "DOE_JANE"
    for path in write_dicom_series(folder, phantom().image, seed="one"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = NAME, NUMBER
        del dataset.SyntheticData
        dataset.save_as(path)
    return folder


def words(verb: str, mask: Path) -> list[object]:
    return [mask if word == "MASK" else word for word in VERBS[verb][0]]


def values(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


# --- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_writes_the_result_on_its_grid_and_says_so(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, verb: str
) -> None:
    folder, kind = tmp_path / "new" / "out", VERBS[verb][1]
    result = cli(verb, scan, "-o", folder, *words(verb, mask), "--no-report")
    assert result.exit_code == 0, result.output
    image = f"sub-01_FLAIR_desc-{kind}.nii.gz"
    expected = {image, image.replace(".nii", "_uncertainty.nii"), *COMMON}
    if verb == "inpaint":
        expected.add(image.replace(".nii", "_invented.nii"))
    assert {path.name for path in folder.iterdir()} == expected
    source, made = nib.load(scan), nib.load(folder / image)
    times = 2 if verb == "super-resolve" else 1
    assert made.shape == tuple(times * n for n in source.shape)
    # The outer edges agree.
    corner = np.array([-0.5, -0.5, -0.5, 1])
    assert np.abs(made.affine @ corner - source.affine @ corner).max() < 1e-3
    uncertainty = nib.load(folder / image.replace(".nii", "_uncertainty.nii"))
    assert uncertainty.shape == made.shape and uncertainty.get_data_dtype() == np.float32
    assert f"Written to {folder}: {len(expected)} files" in result.stdout
    assert "probability 90" in result.stdout.replace("\n", " ")


def test_outside_the_mask_nothing_changes(cli: Cli, scan: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("inpaint", scan, "-o", out, *words("inpaint", mask), "--no-report")
    assert result.exit_code == 0, result.output
    hole, before = values(mask) > 0, values(scan)
    after = values(out / "sub-01_FLAIR_desc-inpainted.nii.gz")
    assert after.dtype == before.dtype
    assert np.array_equal(after[~hole], before[~hole])
    assert not np.array_equal(after[hole], before[hole])
    invented = nib.load(out / "sub-01_FLAIR_desc-inpainted_invented.nii.gz")
    assert invented.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(invented.dataobj) > 0, hole)
    assert f"Filled {hole.sum()} voxels" in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_the_file_and_only_json(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    result = cli(verb, scan, "-o", out, *words(verb, mask), "--no-report", "--json", "-q")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    said = json.loads(result.stdout)
    outputs = said.pop("outputs")
    assert said == json.loads((out / "restoration.json").read_text())
    assert all(Path(path).is_file() for path in outputs.values())
    assert (said["task"], said["result"]) == (verb, VERBS[verb][1])
    assert said["uncertainty"]["level"] == said["uncertainty"]["measured_coverage"] == 0.9
    assert (said["invented"]["voxels"] is None) == (verb != "inpaint")
    assert set(said["measures_meaning"]) == set(said["measures"])
    assert "Not a medical device" in said["disclaimer"]


def test_run_record_owns_up_to_everything(
    cli: Cli, scan: Path, mask: Path, shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    extra = ("--grow", "6", "--seed", "3", "--no-report")
    assert cli("inpaint", scan, "-o", out, *words("inpaint", mask), *extra).exit_code == 0
    record = json.loads((out / "run.json").read_text())
    assert [entry["sha256"] for entry in record["inputs"]] == [hash_file(scan), hash_file(mask)]
    hashes = {entry["name"]: entry["sha256"] for entry in record["outputs"]}
    assert hashes == {p.name: hash_file(p) for p in out.iterdir() if p.name != "run.json"}
    assert record["model"]["sha256"] == hash_file(shelf / "tiny-inpaint" / "medgen.json")
    assert record["command"] == (
        "inpaint INPUT -o OUT --model tiny-inpaint --mask MASK --grow 6.0 --device auto --seed 3 "
        "--no-report"
    )
    assert (record["seed"], record["device"], record["steps"]) == (3, "cpu", [])
    text = (out / "run.json").read_text()
    assert str(scan.parent) not in text and str(mask.parent) not in text


def test_the_report_is_drawn(cli: Cli, scan: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("inpaint", scan, "-o", out, *words("inpaint", mask))
    assert result.exit_code == 0, result.output
    assert f"Look at {out / 'report.html'}" in result.stdout
    assert (out / "overview.png").stat().st_size > 1000
    assert "invented" in (out / "report.html").read_text()


def test_the_same_from_python_and_twice(cli: Cli, scan: Path, shelf: Path, tmp_path: Path) -> None:
    cli("denoise", scan, "-o", tmp_path / "a", "--model", "tiny-denoise", "--no-report")
    paths = medgen.denoise(scan, shelf / "tiny-denoise").save(tmp_path / "b", report=False)
    assert set(paths) == {"image", "uncertainty", "restoration", "run"}
    for path in paths.values():
        if path.name != "run.json":
            assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("verb", "model", "extra"),
    [
        ("inpaint", "biharmonic", ("--remove-anomalies", "--detector", "tiny-baseline")),
        ("super-resolve", "cubic", ("--spacing", "4")),
        ("denoise", "wavelet", ("--strength", "0.5")),
        ("translate", "identity", ("--to", "t1")),
    ],
)
def test_methods_without_training_are_models_too(
    cli: Cli, scan: Path, tmp_path: Path, verb: str, model: str, extra: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    result = cli(verb, scan, "-o", out, "--model", model, *extra, "--no-report")
    assert result.exit_code == 0, result.output
    assert not list(out.glob("*uncertainty*"))
    assert "no uncertainty map" in result.stdout
    record = json.loads((out / "run.json").read_text())
    assert record["model"] == {"name": model, "version": "1.0.0", "sha256": ""}


def test_overwrite_replaces_only_its_own_files(cli: Cli, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    call = ("denoise", scan, "-o", out, "--no-report", "--model")
    assert cli(*call, "tiny-denoise").exit_code == 0
    refused = cli(*call, "wavelet")
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert cli(*call, "wavelet", "--overwrite").exit_code == 0
    # The other model's uncertainty must not stay beside the result of one that has none.
    assert not list(out.glob("*uncertainty*"))
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_says_and_does_nothing(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("medgen.tasks.restoration_scan.run_restoration", lambda *_, **__: 1 / 0)
    out = tmp_path / "out"
    result = cli(verb, scan, "-o", out, *words(verb, mask), "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"sub-01_FLAIR_desc-{VERBS[verb][1]}.nii.gz" in result.stdout
    if verb == "super-resolve":
        assert "48 x 56 x 40" in result.stdout
    assert ("_invented" in result.stdout) == (verb == "inpaint")
    said = json.loads(cli(verb, scan, "-o", out, *words(verb, mask), "--dry-run", "--json").stdout)
    assert said["input"]["shape"] == [24, 28, 20]
    assert not out.exists()


def test_interrupting_leaves_nothing(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medgen.tasks.restoration_scan.run_restoration", interrupt)
    result = cli("denoise", scan, "-o", tmp_path / "a" / "out", "--model", "tiny-denoise")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_names_every_option_in_full(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, verb: str, columns: str
) -> None:
    import typer.main

    from medgen.cli import app

    monkeypatch.setenv("COLUMNS", columns)
    text = re.sub(r"\x1b\[[0-9;]*m", "", cli(verb, "--help").stdout)
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            assert not flag.startswith("-") or re.search(rf"{flag}\b", text), flag
    assert text.count(f"medgen {verb} ") >= 4  # usage and examples


# --- DICOM ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_a_dicom_series_beside_the_scan(
    cli: Cli, series: Path, mask: Path, tmp_path: Path, verb: str
) -> None:
    out, kind = tmp_path / "out", VERBS[verb][1]
    extra = ("--dicom-out", "--no-report", "--json")
    if verb == "inpaint":  # the mask lies on the grid of the file; DICOM counts its rows otherwise
        extra += ("--resample-mask",)
    result = cli(verb, series, "-o", out, *words(verb, mask), *extra)
    assert result.exit_code == 0, result.output
    folder = Path(json.loads(result.stdout)["outputs"]["dicom"])
    assert folder == out / f"scan_{kind}_dicom"
    made = values(out / f"scan_desc-{kind}.nii.gz")
    back = io.read(folder)
    step = (made.max() - made.min()) / 65535
    tolerance = 0.51 if verb == "inpaint" else 0.51 * step + 1e-3
    assert np.abs(back.voxels[0] - made).max() <= tolerance
    original = io.read(series)
    if verb == "inpaint":
        kept = values(out / "scan_desc-inpainted_invented.nii.gz") == 0
        assert np.array_equal(back.voxels[0][kept], original.voxels[0][kept])
    if verb != "super-resolve":
        assert back.geometry.same_grid_as(original.geometry, 1e-2)
    first = pydicom.dcmread(next(folder.iterdir()))
    assert (str(first.PatientName), first.PatientID) == (NAME, NUMBER)
    assert first.SyntheticData == "YES"
    assert "Research use only" in first.DerivationDescription
    for path in out.iterdir():
        assert "DOE" not in path.name
        if path.is_file():
            assert NAME.encode() not in path.read_bytes() and b"DOE" not in path.read_bytes()
    recorded = json.loads((out / "run.json").read_text())["outputs"]
    assert folder.name in {entry["name"] for entry in recorded}


def test_filtering_makes_nothing_synthetic(cli: Cli, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("denoise", series, "-o", out, "--model", "wavelet", "--dicom-out", "--no-report")
    assert cli(*call).exit_code == 0
    objects = [pydicom.dcmread(path) for path in (out / "scan_denoised_dicom").iterdir()]
    assert objects and all("SyntheticData" not in d for d in objects)


def test_only_dicom_gets_dicom(
    cli: Cli, scan: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.tasks.denoise.denoise", lambda *_, **__: 1 / 0)
    out = tmp_path / "out"
    call = ("denoise", scan, "-o", out, "--model", "tiny-denoise", "--dicom-out")
    for more in ((), ("--dry-run",)):
        assert_refused(cli(*call, *more), out, "beside a DICOM series")
    monkeypatch.undo()
    result = medgen.denoise(scan, shelf / "tiny-denoise")
    with pytest.raises(InputError, match="beside a DICOM series"):
        result.save(out, dicom=True)
    assert not out.exists()


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "pattern"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_scans(cli: Cli, tmp_path: Path, make: Callable[[Path], Path], pattern: str) -> None:
    (tmp_path / "in").mkdir()
    source, out = make(tmp_path / "in"), tmp_path / "out"
    call = ("denoise", source, "-o", out, "--model", "tiny-denoise", "--max-memory", 8)
    assert_refused(cli(*call), out, pattern)


@pytest.mark.parametrize("verb", ["inpaint", "super-resolve", "translate"])
@pytest.mark.parametrize("name", ["not_a_number", "constant", "colour", "huge", "four_d"])
def test_the_other_verbs_refuse_bad_scans_too(
    cli: Cli, mask: Path, tmp_path: Path, verb: str, name: str
) -> None:
    make, pattern = next(case for case in CASES if case[0].__name__ == name)
    (tmp_path / "in").mkdir()
    source, out = make(tmp_path / "in"), tmp_path / "out"
    call = (verb, source, "-o", out, *words(verb, mask), "--max-memory", 8)
    assert_refused(cli(*call), out, pattern)


def empty_mask(folder: Path) -> Path:
    image = phantom().image
    nothing = np.zeros(image.geometry.shape, np.uint8)
    return write_nifti(folder / "m.nii.gz", nothing, image.geometry, kind="label")


def whole_mask(folder: Path) -> Path:
    image = phantom().image
    return write_nifti(
        folder / "m.nii.gz", np.ones(image.geometry.shape, np.uint8), image.geometry, kind="label"
    )


def colour_mask(folder: Path) -> Path:
    rgb = np.zeros(phantom().image.geometry.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"][5:9] = 1
    nib.save(nib.Nifti1Image(rgb, phantom().image.affine), folder / "m.nii.gz")
    return folder / "m.nii.gz"


def absent_mask(folder: Path) -> Path:
    return folder / "absent.nii.gz"


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (empty_mask, "the mask is empty"),
        (whole_mask, "covers the whole scan.*is it inverted"),
        (colour_mask, "a mask has one channel, this one has 3"),
        (absent_mask, "no file or folder"),
    ],
)
def test_bad_masks(
    cli: Cli, scan: Path, tmp_path: Path, make: Callable[[Path], Path], pattern: str
) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    call = ("inpaint", scan, "-o", out, "--model", "tiny-inpaint", "--mask", make(tmp_path / "in"))
    assert_refused(cli(*call), out, f"(?s){pattern}")


def moved_mask(folder: Path, mask: Path) -> Path:
    """The same voxels, one voxel further along."""
    image = nib.load(mask)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 0]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "moved.nii.gz")
    return folder / "moved.nii.gz"


def smaller_mask(folder: Path, mask: Path) -> Path:
    image = nib.load(mask)
    nib.save(image.slicer[1:-1], folder / "smaller.nii.gz")
    return folder / "smaller.nii.gz"


@pytest.mark.parametrize("make", [moved_mask, smaller_mask])
def test_a_mask_of_another_grid_is_resampled_only_when_asked(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    other, out = make(tmp_path, mask), tmp_path / "results" / "out"
    out.parent.mkdir()
    call = ("inpaint", scan, "-o", out, "--model", "biharmonic", "--no-report", "--mask", other)
    refused = cli(*call)
    assert_refused(refused, out, "--resample-mask")
    # Both grids are printed.
    for who in ("scan: 24 x 28 x 20 voxels of 6 x 6 x 6 mm", "mask: 2"):
        assert who in refused.stderr
    assert cli(*call, "--resample-mask").exit_code == 0
    hole = values(out / "sub-01_FLAIR_desc-inpainted_invented.nii.gz") > 0
    expected = values(mask) > 0
    if make is moved_mask:  # one voxel further along the first axis of the scan
        expected = np.roll(expected, 1, axis=0)
    assert np.array_equal(hole, expected)


@pytest.mark.parametrize(
    ("verb", "extra", "pattern"),
    [
        ("inpaint", (), "nothing to fill.*--mask lesion"),
        ("inpaint", ("--mask", "MASK", "--grow", "1000"), "0 to 100 mm|whole scan"),
        ("inpaint", ("--remove-metal", "100"), "denser than 500 HU"),
        ("inpaint", ("--remove-metal", "9000"), "no voxel is above 9000 HU"),
        ("inpaint", ("--remove-anomalies", "--detector", "tiny-denoise"), "denoise"),
        ("inpaint", ("--remove-anomalies", "--detector", "nobody"), "unknown model 'nobody'"),
        ("super-resolve", (), "no grid was given.*--scale TIMES, --spacing MM"),
        ("super-resolve", ("--scale", "2", "--isotropic"), "more than one finer grid"),
        ("super-resolve", ("--scale", "0"), "above 1 and at most 8, got 0"),
        ("super-resolve", ("--scale", "-2"), "above 1 and at most 8, got -2"),
        ("super-resolve", ("--scale", "1"), "above 1 and at most 8, got 1"),
        ("super-resolve", ("--scale", "1e6"), r"above 1 and at most 8, got 1e\+06"),
        ("super-resolve", ("--scale", "nan"), "above 1 and at most 8, got nan"),
        ("super-resolve", ("--spacing", "0"), "above 0 mm, got 0"),
        ("super-resolve", ("--spacing", "-1"), "above 0 mm, got -1"),
        ("super-resolve", ("--spacing", "7"), "not finer than the scan's, 6 x 6 x 6 mm"),
        ("super-resolve", ("--spacing", "6"), "not finer than the scan's"),
        ("super-resolve", ("--spacing", "0.01"), "at most 8 times"),
        ("super-resolve", ("--isotropic",), "equal sides already"),
        ("denoise", ("--strength", "0"), "above 0 and at most 1"),
        ("denoise", ("--strength", "2"), "above 0 and at most 1"),
        ("translate", (), "makes t1, t2, flair; say which"),
        ("translate", ("--to", "flairr"), "Did you mean 'flair'"),
        ("translate", ("--to", "../../t2", "--model", "identity"), "letters, digits"),
        ("translate", ("--to", "flair"), "is flair already.*--force"),
    ],
)
def test_bad_wishes(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, verb: str, extra: tuple[str, ...],
    pattern: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    given = [mask if word == "MASK" else word for word in extra]
    call = (verb, scan, "-o", out, "--model", f"tiny-{verb}", *given)
    assert_refused(cli(*call), out, f"(?s){pattern}")


def test_metal_is_of_ct_alone(cli: Cli, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("inpaint", series, "-o", out, "--model", "tiny-inpaint", "--remove-metal", "2500")
    assert_refused(cli(*call), out, "for CT, this scan is MR")


def test_a_contrast_that_was_not_trained_on_needs_force(
    cli: Cli, scan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    call = ("denoise", scan, "-o", out, "--model", "tiny-t1-only", "--no-report")
    for more in ((), ("--dry-run",)):
        assert_refused(cli(*call, *more), out, "(?s)is flair, but .* trained on t1.*--force")
    forced = cli(*call, "--force")
    assert forced.exit_code == 0, forced.output
    assert "forced: this scan is flair" in forced.stderr.replace("\n", " ")
    notes = json.loads((out / "restoration.json").read_text())["notes"]
    assert any(note.startswith("forced: this scan is flair") for note in notes)


def test_values_of_ct_are_noticed_without_a_header(cli: Cli, tmp_path: Path) -> None:
    image = phantom().image
    ct = write_nifti(tmp_path / "ct.nii.gz", image.voxels[0] - 1000.0, image.geometry)
    out = tmp_path / "out"
    call = ("denoise", ct, "-o", out, "--model", "tiny-denoise", "--no-report")
    assert_refused(cli(*call), out, "as in CT")
    assert cli(*call, "--force").exit_code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_and_unfit_models(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    others = words(verb, mask)[2:]
    typo = cli(verb, scan, "-o", out, "--model", f"tiny-{verb}e", *others)
    assert_refused(typo, out, f"Did you mean 'tiny-{verb}'")
    assert_refused(cli(verb, scan, "-o", out, "--model", "tiny-baseline", *others), out, verb)


def test_a_typo_in_a_method_without_training(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = ("inpaint", scan, "-o", out, "--mask", mask, "--model", "biharmonc")
    assert_refused(cli(*call), out, "Did you mean 'biharmonic'")


@pytest.mark.parametrize(
    ("verb", "extra", "pattern"),
    [
        ("inpaint", (), "nothing to fill"),
        ("super-resolve", ("--scale", "0"), "above 1"),
        ("super-resolve", ("--spacing", "7"), "not finer"),
        ("translate", ("--to", "ct"), "not 'ct'"),
    ],
)
def test_dry_run_refuses_what_the_run_refuses(
    cli: Cli, scan: Path, tmp_path: Path, verb: str, extra: tuple[str, ...], pattern: str
) -> None:
    out = tmp_path / "out"
    call = (verb, scan, "-o", out, "--model", f"tiny-{verb}", *extra)
    real, dry = cli(*call), cli(*call, "--dry-run")
    assert_refused(dry, out, pattern)
    assert dry.stderr == real.stderr


def test_a_picture_has_pixels_and_no_volume(cli: Cli, tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (32, 24), np.uint8)
    hole = np.zeros_like(picture)
    hole[8:12, 8:12] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(hole).save(tmp_path / "hole.png")
    call = ("inpaint", tmp_path / "picture.png", "--mask", tmp_path / "hole.png", "--no-report")
    result = cli(*call, "--model", "nearest", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Filled 16 pixels by" in result.stdout and "ml" not in result.stdout
    made = json.loads((tmp_path / "out" / "restoration.json").read_text())["invented"]
    assert made["voxels"] == 16 and made["ml"] is None


def test_the_estimate_of_memory_is_said_before_the_work(
    cli: Cli, scan: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.tasks.restoration_scan.run_restoration", lambda *_, **__: 1 / 0)
    for model in ("nearest", "tiny-inpaint"):
        call = ("inpaint", scan, "--mask", mask, "--no-report", "--model", model)
        result = cli(*call, "-o", tmp_path / model)
        assert (result.exit_code == 0) == (model == "nearest")
        assert "GB of memory (estimated)" in result.stderr


def test_the_folder_of_a_detector_is_not_recorded(
    cli: Cli, scan: Path, mask: Path, shelf: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "Smith_John"
    shutil.copytree(shelf / "tiny-baseline", folder)
    call = ("inpaint", scan, "--mask", mask, "--remove-anomalies", "--detector", folder)
    result = cli(*call, "--model", "nearest", "--no-report", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Smith" not in (tmp_path / "out" / "run.json").read_text()
