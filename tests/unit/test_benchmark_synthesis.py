"""The synthesis benchmark: patients stay apart, cells are done once, numbers are added up right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_packages import save_features

from medgen.errors import InputError, LeakageError
from medgen.methods import build
from medgen.report.benchmark import markdown
from medgen.tasks import benchmark_synthesis
from medgen.tasks.benchmark_cell import MIXED, SYNTHETIC, read_pairs, sample_pairs
from medgen.tasks.benchmark_plan import (
    BASELINES,
    DEFORMED,
    REAL,
    SUITES,
    UNTRAINED,
    BenchmarkSettings,
    budget,
    planned,
)
from medgen.tasks.benchmark_synthesis import Benchmark, benchmark, summarise

PATIENTS, SLICES, EDGE = 6, 10, 16


def save_set(folder: Path, patients: int = PATIENTS, *, labels: bool = True) -> Path:
    """Discs on a background whose brightness is the patient's number times ten."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.mgrid[:EDGE, :EDGE]
    random = np.random.default_rng(0)
    for patient in range(patients):
        image = np.full((SLICES, EDGE, EDGE), 10 * patient, np.uint8)
        label = np.zeros_like(image)
        for number in range(SLICES):
            centre = random.uniform(6, 10, 2)
            disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 12
            label[number][disc] = 1 + number % 2
            image[number][disc] = 200 + random.integers(-20, 20)
        arrays = {"image": image} | ({"label": label} if labels else {})
        np.savez(folder / f"patient{patient}_ed.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return save_set(tmp_path_factory.mktemp("set") / "discs")


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-features"
    save_features(folder)
    return str(folder)


@pytest.fixture
def quick(features: str) -> BenchmarkSettings:
    return BenchmarkSettings(
        size=EDGE, steps=1, samples=20, segmentation_steps=1, features=features
    )


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_slices_keep_their_patient_and_patients_one_side(dataset):
    pairs = read_pairs(dataset, BenchmarkSettings(size=EDGE, steps=1))
    sides = [set(pairs.train.groups), set(pairs.test.groups)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == PATIENTS
    for images in (pairs.train, pairs.test):
        for image, label, group in zip(images.images, images.labels, images.groups, strict=True):
            background = (image[label == 0].mean() + 1) * 127.5
            assert group == f"patient{round(background / 10)}"
    assert pairs.facts["images"] + pairs.facts["held_out_images"] == PATIENTS * SLICES


def test_all_methods_see_equally_many_images_or_train_equally_long():
    suite = SUITES["skandarani"].values()
    by_steps = {budget(BenchmarkSettings(steps=500), one)[0] * one.batch_size for one in suite}
    assert by_steps == {500 * 32}
    by_time = {budget(BenchmarkSettings(minutes=2), one)[1] for one in suite}
    assert by_time == {2.0}


def test_the_plan_has_every_baseline_and_only_the_wanted_methods():
    cells = planned("skandarani", ["spade"], 2)
    assert [cell.name for cell in cells] == [*BASELINES, "spade"] * 2
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert {cell.name for cell in planned("skandarani", [], 1)} == {
        *BASELINES, *SUITES["skandarani"]
    }  # fmt: skip
    with pytest.raises(InputError, match="no method 'spad'"):
        planned("skandarani", ["spad"], 1)


@pytest.mark.parametrize("name", SUITES["skandarani"])
def test_every_contender_makes_pairs_at_several_sizes(name):
    from medgen.methods import registered
    from medgen.tasks.benchmark_cell import _sizes

    contender = SUITES["skandarani"][name]
    for edge in (32, 64):
        method, config = registered(contender.method, contender.config)
        sizes = _sizes(contender, 4)
        network = build(method, config | {"image_size": (edge, edge), **sizes}).eval()
        if not contender.joint:
            network.fill_bank(torch.randint(4, (3, 1, edge, edge)))
        made = sample_pairs(network, 4, 3, seed=0, device="cpu", batch=2)
        assert made.images.shape == made.labels.shape == (3, 1, edge, edge)
        assert made.labels.min() >= 0
        assert made.labels.max() <= 3
        again = sample_pairs(network, 4, 3, seed=0, device="cpu")
        other = sample_pairs(network, 4, 3, seed=1, device="cpu")
        assert np.abs(made.images - again.images).max() < 0.02  # one grey level
        assert not np.array_equal(made.images, other.images)


def test_a_benchmark_leaves_its_table_and_does_nothing_twice(dataset, quick, tmp_path):
    out = tmp_path / "out"
    found = benchmark(dataset, out, quick, methods=["dcgan"], device="cpu")
    assert not found.failed
    assert [row["name"] for row in found.rows] == [REAL, DEFORMED, UNTRAINED, "dcgan"]
    for name in benchmark_synthesis.OUTPUTS:
        assert (out / name).stat().st_size > 0
    table = (out / "table.md").read_text()
    for word in ("DCGAN", "*floor*", "*training images*", "untrained DCGAN", "real images only"):
        assert word in table
    assert "patient0" not in (out / "results.json").read_text()
    dcgan = found.rows[-1]
    assert dcgan["training"]["images"] == 32
    assert set(dcgan["dice"]) == {SYNTHETIC, MIXED}

    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    (out / "runs/dcgan-seed0/result.json").unlink()
    again = benchmark(dataset, out, quick, methods=["dcgan"], device="cpu", resume=True)
    assert again.rows[-1]["metrics"] == dcgan["metrics"], "measured anew, from the same training"
    now = {path: path.stat().st_mtime_ns for path in kept}
    assert [path.parent.name for path in kept if kept[path] != now[path]] == ["dcgan-seed0"]

    with pytest.raises(InputError, match="exists already"):
        benchmark(dataset, out, quick, device="cpu")
    other = quick.model_copy(update={"samples": 30})
    with pytest.raises(InputError, match="another samples"):
        benchmark(dataset, out, other, device="cpu", resume=True)


def test_a_cell_that_fails_does_not_stop_the_others(dataset, quick, tmp_path, monkeypatch):
    def run(dataset, folder, settings, name, seed, **_):
        if name == UNTRAINED:
            raise RuntimeError("out of memory")
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result(name, seed, [0.5, 0.6])))

    monkeypatch.setattr(benchmark_synthesis, "run_cell", run)
    found = benchmark(dataset, tmp_path / "out", quick, methods=["dcgan"], device="cpu")
    assert found.failed == {"untrained-seed0": "RuntimeError: out of memory"}
    assert [row["name"] for row in found.rows] == [REAL, DEFORMED, "dcgan"]
    assert "out of memory" in (tmp_path / "out/table.md").read_text()


def result(name, seed, synthetic, mixed=None, fid=1.0):
    arms = {REAL: synthetic} if name == REAL else {SYNTHETIC: synthetic, MIXED: mixed or synthetic}
    metrics = {"fid": {"value": fid, "floor": 0.1, "at_floor": 2 * fid, "training": 0.2}}
    measured = {"extractor": {"name": "tiny", "sha256": "0" * 64}, "metrics": metrics}
    measured["metrics"] |= {
        metric: {"value": 0.5} for metric in benchmark_synthesis.METRICS if metric != "fid"
    }
    dice = {arm: {"per_patient": values, "per_label": {}} for arm, values in arms.items()}
    found = {"name": name, "seed": seed, "training": {}, "dice": dice}
    return found if name == REAL else found | {"measure": measured}


def test_numbers_are_averaged_over_seeds_and_patients_and_paired():
    real = [0.8, 0.6, 0.7, 0.9, 0.5, 0.6]
    mixed = [value + 0.05 + 0.001 * number for number, value in enumerate(real)]
    rows = summarise(
        [
            result(REAL, 0, real),
            result("dcgan", 0, [0.1] * 6, mixed, fid=1.0),
            result("dcgan", 1, [0.3] * 6, mixed, fid=3.0),
        ],
        "skandarani",
    )
    assert [row["name"] for row in rows] == [REAL, "dcgan"]
    dcgan = rows[1]
    assert dcgan["metrics"]["fid"] == pytest.approx(
        {"value": 2.0, "at_floor": 4.0, "floor": 0.1, "training": 0.2, "sd": np.sqrt(2)}
    )
    assert dcgan["dice"][SYNTHETIC]["mean"] == pytest.approx(0.2)
    both = dcgan["dice"][MIXED]
    assert both["difference"] == pytest.approx(0.0525)
    assert both["difference_interval"][0] > 0
    assert both["p_value"] == pytest.approx(2 / 2**6), "six patients, all better"
    low, high = rows[0]["dice"][REAL]["interval"]
    assert low < np.mean(real) < high
    facts = {
        "images": dict.fromkeys(("images", "groups", "held_out_images", "held_out_groups"), 9),
        "settings": BenchmarkSettings(steps=10).model_dump(), "labels": ["background", "disc"],
        "command": "medgen benchmark", "device": "cpu",
        "extractor": {"name": "tiny", "sha256": "abc"},
    }  # fmt: skip
    text = markdown(Benchmark(rows, facts, {}))
    assert "| DCGAN | 2 | 2 ± 1.4 | 4 |" in text
    assert "+0.052" in text or "+0.053" in text


def test_sets_that_cannot_be_used_are_refused(tmp_path, quick):
    def refused(folder, kind, words):
        with pytest.raises(kind, match=words):
            benchmark(folder, tmp_path / "out", quick, device="cpu")
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "nowhere", InputError, "no folder")
    empty = tmp_path / "pictures"
    empty.mkdir()
    (empty / "a.png").write_bytes(b"")
    refused(empty, InputError, "is not annotated")
    refused(save_set(tmp_path / "plain", labels=False), InputError, "needs `image` and `label`")
    refused(save_set(tmp_path / "one", 1), InputError, "too few groups")
    copied = save_set(tmp_path / "copied", 2)
    (copied / "patient1_ed.npz").write_bytes((copied / "patient0_ed.npz").read_bytes())
    refused(copied, LeakageError, "is the same image")
