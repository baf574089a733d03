"""`medgen evaluate anomaly` and `medgen benchmark anomaly` on the command line."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from medgen.io import write_nifti
from medgen.phantoms import brain

STUDY = """
name: Two heads
protocols: [kascenas2022]
test: {phantoms: {count: 2, shape: [32, 36], spacing_mm: 5.0, lesion_radius_mm: 16.0}}
preparation: {spacing_mm: 5.0}
resamples: 100
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_an_evaluation_prints_its_table(cli, study, tmp_path):
    done = cli("evaluate", "anomaly", study, "-o", tmp_path / "out", "--set",
               "models=[tiny-baseline]", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "| tiny-baseline | 1 |" in done.stdout
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == "evaluate anomaly CONFIG -o OUT"
    again = cli("evaluate", "anomaly", study, "-o", tmp_path / "two", "--json", "--device", "cpu")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["name"] == "Two heads"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(cli, study, tmp_path):
    out = tmp_path / "out"
    methods = "methods={dae: {config: {spatial_dims: 2}}, vae: {config: {spatial_dims: 2}}}"
    done = cli("benchmark", "anomaly", study, "-o", out, "--set", methods, "--methods", "dae",
               "--set", "training={data: {kind: phantoms}}", "--seeds", 2,
               "--minutes-per-method", 1, "--dry-run")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["cells"][-2:] == ["dae-seed0", "dae-seed1"]
    assert plan["cases"]["test"] == ["phantom-1000", "phantom-1001"]
    assert not out.exists()


def test_what_cannot_be_is_refused_with_exit_code_2(cli, study, tmp_path):
    out = tmp_path / "out"
    with_methods = ("--set", "methods={dae: {}}")
    twice = tmp_path / "twice.yaml"
    twice.write_text(STUDY + "name: Another\n")
    for words, message in (
        (("evaluate", "anomaly", tmp_path / "none.yaml"), "cannot read the study"),
        (("evaluate", "anomaly", study, *with_methods), "names methods to train: dae"),
        (("evaluate", "anomaly", study, "--set", "protocols=[behrendt2023]"), "validation set"),
        (("evaluate", "anomaly", study, "--set", "test.phantoms.normal=2"), "cases are normal"),
        (("evaluate", "anomaly", study, "--device", "gpu"), "gpu"),
        (("evaluate", "anomaly", study, "--set", "test.masks=x"), "masks mean nothing beside"),
        (("evaluate", "anomaly", study, "--set", "protocols=[{name: baur2021, median: 4}]"),
         "must be odd, got 4"),
        (("evaluate", "anomaly", study, "--set", "protocols=[as_shipped]"), "judges packages"),
        (("evaluate", "anomaly", study, "--set", "test={count: 2, count: 3}"), "not valid YAML"),
        (("evaluate", "anomaly", twice), "the key 'name' stands twice"),
        (("evaluate", "anomaly", study, "--set", "models=[tiny-base]"), "Did you mean"),
        (("benchmark", "anomaly", study), "names no methods to train"),
        (("evaluate", "anomaly", study, "--set", "training={steps: 1}"), "no `methods`"),
        (("benchmark", "anomaly", study, *with_methods), "steps"),
        (("benchmark", "anomaly", study, "--steps", 1, *with_methods, "--set",
          "training={data: {kind: phantoms}}", "--set", "test.phantoms.first=0"),
         "dae was trained or calibrated on 2 of the 2 cases of test"),
        (("benchmark", "anomaly", study, *with_methods, "--methods", "vae"), "no method 'vae'"),
        (("benchmark", "anomaly", study, *with_methods, "--steps", 1, "--minutes-per-method", 1),
         "exclude each other"),
    ):  # fmt: skip
        done = cli(*words, "-o", out)
        assert done.exit_code == 2, (words, done.stdout, done.stderr)
        assert message in done.stderr, (words, done.stderr)
        assert not out.exists(), words


def test_masks_of_another_size_are_refused_before_anything_is_written(cli, study, tmp_path):
    head = brain((24, 28), spacing_mm=6.0, contrast="flair", lesion_radius_mm=14.0)
    other = brain((22, 28), spacing_mm=6.0, contrast="flair", lesion_radius_mm=14.0)
    scans = tmp_path / "scans"
    scans.mkdir()
    write_nifti(scans / "a_FLAIR.nii.gz", head.image.voxels[0], head.image.geometry)
    label = other.lesion.astype(np.uint8)
    write_nifti(scans / "a_lesion.nii.gz", label, other.image.geometry, kind="label")
    test = "test={images: '*_FLAIR.nii.gz', masks: {_FLAIR: _lesion}}"
    done = cli("evaluate", "anomaly", study, "--data", scans, "--set", test,
               "-o", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 2
    assert "lies on another grid than its image" in done.stderr
    assert not (tmp_path / "out").exists()


PICTURES = """
name: Pictures
protocols: [image_level]
test: {folder: set, abnormal: [ill], validation_fraction: 0.5}
preparation: {spacing_mm: 1.0, brain: none}
training: {config: {spatial_dims: 2}, data: {kind: normals, folder: set, conditions: {h: healthy}}}
methods: {linear_ae: {config: {image_size: [32, 32]}}}
"""


def test_what_is_wrong_with_methods_is_said_before_any_is_trained(cli, tmp_path):
    random = np.random.default_rng(0)
    for n in range(24):
        folder = tmp_path / "data" / "set" / ("healthy" if n < 12 else "ill")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    file = tmp_path / "study.yaml"
    file.write_text(PICTURES)
    out = tmp_path / "out"
    words = ("benchmark", "anomaly", file, "--data", tmp_path / "data", "-o", out, "--steps", 1,
             "--seeds", 1, "--device", "cpu")  # fmt: skip
    for change, message in (
        ("name=x", "linear_ae was trained or calibrated on"),  # training holds out less
        ("methods={dcgan: {}}", "method dcgan: it gives no map of anomalies"),
        ("methods={dncnn: {}}", "method dncnn: it gives no map of anomalies"),
        ("methods.linear_ae.config.featurez=3", "unknown key 'featurez'"),
        ("training.data={}", "data.kind must be one of"),
        ("models=[{name: a, runs: [nope]}]", "nope holds no finished training run"),
    ):
        done = cli(*words, "--set", change)
        assert done.exit_code == 2, (change, done.stderr)
        assert message in done.stderr, (change, done.stderr)
        assert not out.exists(), change


def test_a_study_that_comes_to_nothing_leaves_no_folder(cli, study, tmp_path):
    scan = tmp_path / "scans" / "a_FLAIR.nii.gz"
    scan.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), scan)
    label = np.eye(8, dtype=np.uint8)[None].repeat(8, 0)
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), scan.with_name("a_lesion.nii.gz"))
    out = tmp_path / "out"
    done = cli("evaluate", "anomaly", study, "--data", scan.parent, "-o", out, "--set",
               "test={images: '*_FLAIR.nii.gz', masks: {_FLAIR: _lesion}}")  # fmt: skip
    assert done.exit_code == 2
    assert "not finite" in done.stderr or "NaN" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("damage", ["result", "arrays", "missing"])
def test_a_damaged_cell_is_done_again(cli, study, tmp_path, damage):
    out = tmp_path / "out"
    words = ("evaluate", "anomaly", study, "-o", out, "--device", "cpu")
    assert cli(*words).exit_code == 0
    table = (out / "table.md").read_text()
    cell = out / "runs" / "intensity-seed0"
    if damage == "result":
        (cell / "result.json").write_text("{corrupt")
    elif damage == "arrays":
        (cell / "arrays.npz").write_bytes((cell / "arrays.npz").read_bytes()[:100])
    else:
        (cell / "arrays.npz").unlink()
    done = cli(*words, "--resume")
    assert done.exit_code == 0, done.stderr
    kept = table[: table.index("## Cost")]
    assert (out / "table.md").read_text().startswith(kept)


def test_a_wrong_key_is_told_with_the_keys_of_its_place(cli, study, tmp_path):
    words = ("evaluate", "anomaly", study, "-o", tmp_path / "out", "--set")
    done = cli(*words, "test.phantoms.cuont=3")
    assert done.exit_code == 2
    assert "unknown key 'test.phantoms.cuont'. Did you mean 'count'?" in done.stderr
    assert "Known keys: count, first, contrast" in done.stderr
    done = cli(*words, "test.phantoms.count=-1")
    assert "test.phantoms.count: Input should be greater than or equal to 1" in done.stderr
    assert "Known keys" not in done.stderr
