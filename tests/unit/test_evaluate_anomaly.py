"""A comparison from end to end on small phantoms: the same again, resumed, and honest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_packages import save_intensity

from medgen.batch.cells import runner
from medgen.errors import InputError
from medgen.scoring import equalised, median_in_mask
from medgen.tasks import evaluate_anomaly
from medgen.tasks.anomaly_cases import cases_of
from medgen.tasks.anomaly_cell import read_scores
from medgen.tasks.anomaly_study import INTENSITY, INVERTED, UNTRAINED, Study
from medgen.tasks.benchmark_runs import RUNS, stored
from medgen.tasks.evaluate_anomaly import CASES, OUTPUTS, RESULTS, compare

HEADS = {"count": 3, "shape": [32, 36], "spacing_mm": 5.0, "lesion_radius_mm": 16.0}
SMALL = {"spatial_dims": 2, "features": [8, 8, 8, 8, 8]}


def study(**values) -> Study:
    return Study.model_validate(
        {
            "name": "Phantoms",
            "protocols": ["kascenas2022"],
            "test": {"phantoms": {**HEADS, "normal": 1}},
            "validation": {"phantoms": {**HEADS, "first": 2000}},
            "normals": {"phantoms": {**HEADS, "first": 3000, "normal": 3}},
            "preparation": {"spacing_mm": 5.0},
            "resamples": 200,
            "pictures": 1,
            **values,
        }
    )


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_intensity(folder)
    return folder


@pytest.fixture(scope="module")
def done(package, tmp_path_factory) -> tuple[Study, Path, dict]:
    baur = {"name": "baur2021", "erosion_voxels": 2}
    wanted = study(
        models=[str(package)], protocols=[baur, "behrendt2023", "as_shipped", "image_level"]
    )
    out = tmp_path_factory.mktemp("study") / "out"
    found = compare(wanted, out, command="evaluate anomaly", device="cpu")
    assert not found.failed
    return wanted, out, found.result


def row(result: dict, name: str, protocol: str) -> dict:
    return next(r for r in result["rows"] if (r["name"], r["protocol"]) == (name, protocol))


def test_everything_is_written_and_the_baselines_stand_in_every_table(done):
    _, out, result = done
    for name in OUTPUTS:
        assert (out / name).stat().st_size > 0
    table = (out / "table.md").read_text()
    page = (out / "index.html").read_text()
    baur = "baur2021, erosion_voxels 2"
    for protocol in (baur, f"{baur}, no prior", "behrendt2023", "image_level"):
        names = {r["name"] for r in result["rows"] if r["protocol"] == protocol}
        assert {INTENSITY, INVERTED, "tiny"} <= names
        assert f"## {protocol}" in table
    shipped = [r["name"] for r in result["rows"] if r["protocol"] == "as_shipped"]
    assert shipped == ["tiny"], "only a package has a scoring of its own"
    for words in (
        "best Dice (optimistic)",
        "prevalence",
        "best Dice on 3 validation cases",
        "calibrated threshold of the package",
    ):
        assert words in table, words
    assert page.count("data:image/png;base64") >= 2
    assert "<script" not in page and "http" not in page.split("</style>")[1]
    lines = (out / CASES).read_text().splitlines()
    header = lines[0].split("\t")
    assert all(len(line.split("\t")) == len(header) for line in lines)
    normal = next(line for line in lines if "phantom-1002" in line and "baur2021" in line)
    assert "auprc: the truth holds no abnormal voxel" in normal


def test_pooled_numbers_are_those_of_scikit_learn(tmp_path):
    name = "kascenas2022"
    one = study(protocols=[name])
    folder = tmp_path / "single"
    found = compare(one, folder, command="evaluate anomaly", device="cpu").result
    scores, truth, ill = [], [], []
    for case in cases_of(one.test, Path()):
        loaded = case.load()
        prepared = one.preparation.apply(loaded.volume, loaded.region)
        inside = np.asarray(prepared.mask)[0]
        ranks = equalised(np.asarray(prepared.image)[0], inside)
        smooth = prepared.to_source(median_in_mask(ranks, inside, 5)[None])[0]
        scores.append(smooth[loaded.region])
        truth.append(loaded.truth[loaded.region])
        ill.append(bool(loaded.truth.any()))
    pooled = average_precision_score(np.concatenate(truth), np.concatenate(scores))
    values = row(found, INTENSITY, name)
    assert values["voxel"]["auprc"]["value"] == pytest.approx(pooled, abs=2e-3)
    assert values["voxel"]["prevalence"] == pytest.approx(np.concatenate(truth).mean())
    low, high = values["voxel"]["auprc"]["interval"]
    assert low <= values["voxel"]["auprc"]["value"] + 5e-3 and high > low
    rows = stored(folder / RUNS / "intensity-seed0")["sets"]["test"][name]
    scans = [r["scan_score"] for r in rows]
    assert [r["abnormal"] for r in rows] == ill == [True, True, False]
    assert values["image"]["auroc"]["value"] == pytest.approx(roc_auc_score(ill, scans))
    # Bright lesions: the brighter is the more abnormal, and the inverse is worse.
    assert values["voxel"]["auprc"]["value"] > row(found, INVERTED, name)["voxel"]["auprc"]["value"]
    assert row(found, INVERTED, name)["above_intensity"]["value"] < 0


def test_the_fixed_threshold_is_the_validation_sets_and_dice_keeps_to_it(done):
    _, out, result = done
    cell = stored(out / RUNS / "intensity-seed0")
    threshold = cell["thresholds"]["behrendt2023"]
    assert threshold["rule"] == "best Dice on 3 validation cases"
    scores = read_scores(out / RUNS / "intensity-seed0", cell)["behrendt2023"]
    values = row(result, INTENSITY, "behrendt2023")["voxel"]
    found, wrong, there = np.sum([r["overlap"] for r in scores.rows], axis=0)
    assert values["dice"]["value"] == pytest.approx(2 * found / (found + wrong + there))
    assert values["dice"]["value"] <= values["best_dice"]["value"] + 1e-3
    shipped = row(result, "tiny", "as_shipped")["voxel"]["thresholds"][0]
    assert shipped == {"value": 0.97, "rule": "calibrated threshold of the package"}
    normals = row(result, INTENSITY, "behrendt2023")["normals"]
    assert normals["cases"] == 3 and normals["threshold"] == threshold["rule"]


def test_without_a_validation_set_no_dice_but_the_optimistic_one(tmp_path):
    one = study(validation=None, normals=None)
    result = compare(one, tmp_path / "out", command="c", device="cpu").result
    values = row(result, INTENSITY, "kascenas2022")
    assert values["voxel"]["dice"]["value"] is None
    assert values["undefined"]["dice"] == "no validation set with known voxels"
    assert values["voxel"]["best_dice"]["value"] > 0
    assert values["normals"] is None


def test_a_normal_validation_set_gives_the_threshold_of_a_false_positive_rate(tmp_path):
    normal = {"phantoms": {**HEADS, "first": 2000, "normal": 3}}
    one = study(validation=normal, normals=None, false_positive_rate=0.05)
    compare(one, tmp_path / "out", command="c", device="cpu")
    cell = stored(tmp_path / "out" / RUNS / "intensity-seed0")
    rows = cell["sets"]["validation"]["kascenas2022"]
    assert all(r["undefined"] for r in rows), "no abnormal voxel: AUPRC is undefined there"
    threshold = cell["thresholds"]["kascenas2022"]
    assert threshold["rule"] == "0.05 of the voxels of 3 normal validation cases"
    assert 0.8 < threshold["value"] < 1, "the score is a rank"


def test_a_second_run_gives_the_same_bytes(done, tmp_path):
    wanted, out, _ = done
    compare(wanted, tmp_path / "again", command="evaluate anomaly", device="cpu")
    for name in (RESULTS, CASES):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_methods_are_trained_in_seeds_resumed_and_pooled(tmp_path, monkeypatch):
    wanted = study(
        validation=None, normals=None,
        methods={"dae": {"config": {**SMALL, "noise_grid": 4}}, "vae": {"config": {
            "spatial_dims": 2, "features": [4, 4, 4], "latent_channels": 2}}},
        training={
            "data": {"kind": "phantoms", "heads": 1, "size": [32, 32], "spacing_mm": 5.0,
                     "shape": [32, 36, 28], "healthy_fraction": 1.0},
            "batch_size": 2, "steps": 1,
        },
    )  # fmt: skip
    out = tmp_path / "out"
    first = compare(wanted, out, command="c", methods=["dae"], seeds=1, device="cpu")
    assert not first.failed
    assert {r["name"] for r in first.result["rows"]} == {INTENSITY, INVERTED, UNTRAINED, "dae"}
    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    more = compare(wanted, out, command="c", seeds=2, steps=None, device="cpu", resume=True)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    dae = row(more.result, "dae", "kascenas2022")
    assert dae["seeds"] == 2 and dae["voxel"]["auprc"]["sd"] is not None
    assert dae["facts"]["training"] == {"images": 2, "steps": 1}
    assert row(more.result, "vae", "kascenas2022")["seeds"] == 2
    singles = [stored(out / RUNS / f"dae-seed{seed}")["facts"]["sha256"] for seed in (0, 1)]
    assert singles[0] != singles[1]
    # What was trained can be evaluated again, on other cases.
    other = study(validation=None, normals=None, models=[{"study": str(out)}],
                  test={"phantoms": {**HEADS, "first": 4000}})  # fmt: skip
    again = compare(other, tmp_path / "other", command="c", device="cpu")
    assert not again.failed
    assert row(again.result, "dae", "kascenas2022")["seeds"] == 2
    with pytest.raises(InputError, match="exists already"):
        compare(wanted, out, command="c", device="cpu")
    with pytest.raises(InputError, match="begun with another seed"):
        compare(wanted.model_copy(update={"seed": 3}), out, command="c", device="cpu", resume=True)


def test_a_model_that_fails_or_saw_a_subject_does_not_stop_the_others(tmp_path, monkeypatch):
    from medgen.tasks import anomaly_cell

    found = anomaly_cell.detector

    def leaky(wanted, unit, run=None):
        model = found(wanted, unit, run)
        if unit.name == INVERTED:
            name = cases_of(wanted.test, Path())[0].group
            known = frozenset({hashlib.sha256(name.encode()).hexdigest()})
            object.__setattr__(model, "known", known)
        return model

    monkeypatch.setattr(anomaly_cell, "detector", leaky)
    one = study(validation=None, normals=None)
    found_by_all = compare(one, tmp_path / "out", command="c", device="cpu")
    assert set(found_by_all.failed) == {"intensity-inverted-seed0"}
    assert (
        "was trained or calibrated on 1 of the" in found_by_all.failed["intensity-inverted-seed0"]
    )
    assert {r["name"] for r in found_by_all.result["rows"]} == {INTENSITY}
    assert "Failed: intensity-inverted-seed0" in (tmp_path / "out" / "table.md").read_text()


def test_parallel_cells_give_the_same(done, tmp_path):
    wanted, _, _ = done
    one = wanted.model_copy(update={"models": (), "protocols": ("kascenas2022",)})
    results = [
        compare(one, tmp_path / str(jobs), command="c", device="cpu", runner=runner(jobs)).result
        for jobs in (1, 2)
    ]
    assert json.dumps(results[0]) == json.dumps(results[1])


def test_nothing_to_show_is_an_error(tmp_path, monkeypatch):
    def fail(order):
        raise MemoryError

    monkeypatch.setattr(evaluate_anomaly, "run_cell", fail)
    with pytest.raises(InputError, match="no model could be evaluated"):
        compare(study(), tmp_path / "out", command="c", device="cpu")
