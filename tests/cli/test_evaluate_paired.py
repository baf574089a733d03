"""``medgen evaluate paired`` as a person runs it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import wilcoxon
from skimage.metrics import structural_similarity

from medgen.io import write_nifti
from medgen.volume import Geometry

SHAPE, SUBJECTS = (30, 26, 16), 6
GRID = Geometry(SHAPE, np.diag([1.0, 1, 2, 1]))


def arrays(seed: int, noise: float = 0.0) -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(0, 4, n) for n in SHAPE], indexing="ij")
    smooth = 500 + 300 * np.sin(sum(axes) + seed)
    return (smooth + noise * np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("paired")
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:20, 8:18, 4:12] = 1
    for name in ("truth", "good", "poor", "masks"):
        (root / name).mkdir()
    for n in range(SUBJECTS):
        write_nifti(root / "truth" / f"s-{n}.nii.gz", arrays(n), GRID)
        write_nifti(root / "good" / f"s-{n}_denoised.nii.gz", arrays(n, 20), GRID)
        write_nifti(root / "poor" / f"s-{n}.nii.gz", arrays(n, 60 + n), GRID)
        write_nifti(root / "masks" / f"s-{n}_mask.nii.gz", mask, GRID, kind="label")
    return root


@pytest.fixture
def evaluate(cli, folders, monkeypatch):
    """The command on the folders' names, below their root."""
    monkeypatch.chdir(folders)
    return lambda *words: cli("evaluate", "paired", *words)


def test_two_methods_in_one_table_with_their_test(evaluate, folders):
    done = evaluate("truth", "net=good", "poor", "-o", "out")
    assert done.exit_code == 0, done.stderr
    out = folders / "out"
    names = {"evaluation.json", "subjects.tsv", "table.md", "report.html", "run.json"}
    assert {path.name for path in out.iterdir()} == names
    result = json.loads((out / "evaluation.json").read_text())
    assert result["region"] == "the whole image" and not result["notes"]
    rows = list(csv.DictReader((out / "subjects.tsv").open(), delimiter="\t"))
    assert len(rows) == 2 * SUBJECTS and rows[0]["subject"] == "s-0"
    a, b = arrays(0).astype(float), arrays(0, 20).astype(float)
    expected = structural_similarity(
        a, b, data_range=float(rows[0]["data_range"]), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert float(rows[0]["ssim"]) == pytest.approx(expected, abs=1e-4)
    assert float(rows[0]["data_range"]) == pytest.approx(np.ptp(a), rel=1e-5)
    summary = result["methods"]["net"]["psnr"]
    low, high = summary["interval"]
    assert low <= summary["mean"] <= high and summary["subjects"] == SUBJECTS
    each = [[r["mae"] for r in result["subjects"] if r["method"] == m] for m in ("net", "poor")]
    test = next(t for t in result["tests"] if t["measure"] == "mae")
    assert test["p_value"] == pytest.approx(wilcoxon(*each).pvalue)
    assert test["p_value"] == test["smallest_p_value"] and test["difference"] < 0
    table = (out / "table.md").read_text()
    assert table == done.stdout and "| net - poor | MAE |" in table
    assert "| net | 6 (p at least" in table  # who is ahead
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3 * 2 * SUBJECTS
    assert "http" not in page.replace("http-equiv", "")
    assert len(json.loads((out / "run.json").read_text())["inputs"]) == 3


def test_inside_the_mask_only(evaluate, folders):
    done = evaluate("truth", "good", "--mask", "masks", "--data-range", 1000, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    first = result["subjects"][0]
    box = (slice(8, 20), slice(8, 18), slice(4, 12))
    error = arrays(0, 20)[box] - arrays(0)[box]
    assert result["region"] == "inside the mask" and first["voxels"] == 12 * 10 * 8
    assert first["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert first["psnr"] == pytest.approx(10 * np.log10(1e6 / np.square(error).mean()), abs=1e-4)
    files = ("truth/s-0.nii.gz", "good/s-0_denoised.nii.gz", "--mask", "masks/s-0_mask.nii.gz")
    one = evaluate(*files, "--data-range", 1000, "--json")
    alone = json.loads(one.stdout)
    assert {**alone["subjects"][0], "method": "good"} == first
    assert alone["methods"]["s-0_denoised.nii.gz"]["mae"]["interval"] is None


def test_undefined_is_said_and_left_out_of_the_mean(evaluate, folders):
    (folders / "same").mkdir()
    for n in range(SUBJECTS):
        write_nifti(folders / "same" / f"s-{n}.nii.gz", arrays(n, 0 if n == 1 else 9), GRID)
    done = evaluate("truth", "same", "-o", "undefined")
    assert done.exit_code == 0, done.stderr
    assert "undefined" in done.stdout and "identical images" in done.stdout
    text = (folders / "undefined" / "evaluation.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    summary = json.loads(text)["methods"]["same"]
    assert summary["psnr"]["subjects"] == SUBJECTS - 1 and summary["mae"]["subjects"] == SUBJECTS
    lines = (folders / "undefined" / "subjects.tsv").read_text().splitlines()
    assert "n/a" in lines[2] and "psnr: identical" in lines[2]


def test_missing_subjects_are_named(evaluate, folders):
    (folders / "few").mkdir()
    write_nifti(folders / "few" / "s-1.nii.gz", arrays(1, 5), GRID)
    done = evaluate("truth", "good", "few", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert "few lacks 5 of 6 subjects" in result["notes"][0] and "s-0" in result["notes"][0]
    assert {test["subjects"] for test in result["tests"]} == {1}


def test_rescaled_images_may_have_any_unit(evaluate, folders):
    (folders / "other").mkdir()
    for n in range(SUBJECTS):
        write_nifti(folders / "other" / f"s-{n}.nii.gz", 3 * arrays(n) - 7, GRID)
    done = evaluate("truth", "other", "--rescale", "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["subjects"]
    assert max(row["mae"] for row in rows) < 1e-5 and {row["data_range"] for row in rows} == {1}


def test_pictures_are_grouped_by_patient(evaluate, folders):
    generator = np.random.default_rng(0)
    for name in ("shown", "drawn"):
        (folders / name).mkdir()
        for picture in ("p1_a", "p1_b", "p2_a"):
            pixels = generator.integers(0, 255, (40, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(folders / name / f"{picture}.png")
    done = evaluate("shown", "drawn", "--group-pattern", "^([^_]+)_", "-o", "pictures")
    assert done.exit_code == 0, done.stderr
    result = json.loads((folders / "pictures" / "evaluation.json").read_text())
    assert {row["data_range"] for row in result["subjects"]} == {255}
    assert result["methods"]["drawn"]["mae"]["patients"] == 2
    assert "3 subjects of 2 patients" in done.stdout


def test_another_grid_is_refused_and_both_are_printed(evaluate, folders):
    far = Geometry(SHAPE, np.diag([1.0, 1, 2.5, 1]))
    write_nifti(folders / "far.nii.gz", arrays(0), far)
    done = evaluate("truth/s-0.nii.gz", "far.nii.gz", "-o", "none")
    assert done.exit_code == 2
    for text in ("30 x 26 x 16 voxels of 1 x 1 x 2 mm", "30 x 26 x 16 voxels of 1 x 1 x 2.5 mm"):
        assert text in done.stderr
    done = evaluate("truth/s-0.nii.gz", "poor/s-0.nii.gz", "--mask", "far.nii.gz", "-o", "none")
    assert done.exit_code == 2 and "another grid" in done.stderr
    assert not (folders / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("truth", "nowhere"), "no file or folder"),
        (("truth", "masks", "--only", "*.png"), "no image named like a reference"),
        (("truth", "good", "good"), "two results have the name good"),
        (("truth", "=good"), "NAME=PATH"),
        (("truth", "good", "--data-range", 0), "must be positive"),
        (("truth", "good", "--data-range", 1, "--rescale"), "no meaning"),
        (("truth", "good", "--group-pattern", "s-"), "one (...)"),
        (("truth", "good", "-o", "truth/inside"), "inside the input"),
    ],
)
def test_wrong_options_are_named(evaluate, folders, words, message):
    output = () if "-o" in words else ("-o", "none")
    done = evaluate(*words, *output)
    assert done.exit_code == 2 and message in done.stderr, done.stderr
    assert not (folders / "none").exists() and not (folders / "truth" / "inside").exists()


def test_an_empty_mask_leaves_everything_undefined(evaluate, folders):
    write_nifti(folders / "empty.nii.gz", np.zeros(SHAPE, np.uint8), GRID, kind="label")
    done = evaluate("truth/s-0.nii.gz", "poor/s-0.nii.gz", "--mask", "empty.nii.gz")
    assert done.exit_code == 2 and "empty" in done.stderr
