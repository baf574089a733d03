"""Cases that are inpainted, refined, denoised or translated, alone or one step after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hostile_cohorts import cohort, nifti_cohort
from pydantic import TypeAdapter
from tiny_packages import save_intensity, save_restorer

from medgen import io
from medgen.batch.discover import discover
from medgen.batch.estimate import memory_needs_gb, seconds_per_case
from medgen.batch.pipeline import Pipeline, Task
from medgen.batch.plan import check_for
from medgen.batch.prepare import packages_of
from medgen.batch.work import Job, Outcome, work
from medgen.errors import InputError
from medgen.io.walk import Location
from medgen.package import load_package
from medgen.tasks.chain import Tools, model_names, run_steps

SHAPE = (24, 28, 20)
DENOISE = {"name": "denoise", "model": "tiny-denoise"}
REFINE = {"name": "super-resolve", "model": "tiny-sr", "scale": 2}
FILL = {
    "name": "inpaint", "model": "tiny-inpaint", "remove_anomalies": True,
    "detector": "tiny-baseline",
}  # fmt: skip
TRANSLATE = {"name": "translate", "model": "tiny-translate", "to": "t2"}
CUBIC = {"name": "super-resolve", "model": "cubic", "isotropic": False, "scale": 2}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_intensity(folder / "tiny-baseline")
    for step in (DENOISE, REFINE, FILL, TRANSLATE):
        save_restorer(folder / step["model"], step["name"])
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nifti_cohort(tmp_path_factory.mktemp("in"), 1)[0].path


@pytest.fixture(autouse=True)
def on_the_shelf(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_MODELS", str(shelf))


def task_of(values: dict[str, Any]) -> Task:
    task: Task = TypeAdapter(Task).validate_python(values)
    return task


def done(task: dict[str, Any], sources: Any, tmp_path: Path, **changes: Any) -> Outcome:
    """One case, worked on here."""
    pipeline = Pipeline.model_validate({"name": "p", "task": {"report": False, **task}})
    values: dict[str, Any] = {
        "id": "case", "sources": tuple(sources), "root": str(tmp_path), "private": False,
        "task": pipeline.task, "drafts": str(tmp_path / "drafts"),
        "models": {n: str(p.folder) for n, p in packages_of(pipeline).items()},
    }  # fmt: skip
    outcome = work(Job(**{**values, **changes}))
    assert outcome.state == "done", outcome
    return outcome


def image_of(outcome: Outcome) -> Any:
    return nib.load(Path(outcome.draft) / outcome.result["outputs"]["image"])


def test_a_chain_is_its_steps_one_by_one(scan: Path, tmp_path: Path) -> None:
    steps = [DENOISE, REFINE, TRANSLATE]
    outcome = done({"name": "chain", "steps": steps}, [Location(scan)], tmp_path)
    by_hand = io.read(scan)
    for step in steps:
        (result,) = run_steps(by_hand, [task_of(step)], Tools(device="cpu"))
        by_hand = type(by_hand)(result.output[None], result.geometry, by_hand.provenance)
    made = image_of(outcome)
    assert made.shape == tuple(2 * n for n in SHAPE)
    assert np.array_equal(np.asarray(made.dataobj), by_hand.voxels[0])
    assert np.abs(made.affine - by_hand.affine).max() < 1e-4
    # Named after the scan, and everything that was done is told.
    folder = Path(outcome.draft)
    assert outcome.result["outputs"]["image"].startswith("case-0000_FLAIR_desc-")
    summary = json.loads((folder / "restoration.json").read_text())
    assert [step["task"] for step in summary["steps"]] == ["denoise", "super-resolve"]
    assert (summary["task"], summary["result"]) == ("translate", "t2")
    assert any(note.startswith("denoise: ") for note in summary["notes"])
    record = json.loads((folder / "run.json").read_text())
    assert [step["model"]["name"] for step in record["steps"]] == ["tiny-denoise", "tiny-sr"]
    assert record["inputs"][0]["name"] == scan.name
    assert (folder / outcome.result["thumbnail"]).stat().st_size > 100


@pytest.mark.parametrize("step", [DENOISE, FILL, CUBIC], ids=lambda step: step["model"])
def test_a_single_task(step: dict[str, Any], scan: Path, tmp_path: Path) -> None:
    outcome = done(step, [Location(scan)], tmp_path)
    (by_hand,) = run_steps(io.read(scan), [task_of(step)], Tools(device="cpu"))
    assert np.array_equal(np.asarray(image_of(outcome).dataobj), by_hand.output)
    assert outcome.result["values"]["voxels"] == " x ".join(map(str, by_hand.geometry.shape))
    assert bool(outcome.result["values"]["invented_ml"]) == (step is FILL)
    assert all((Path(outcome.draft) / n).exists() for n in outcome.result["outputs"].values())


def test_bids_names_say_what_it_is(scan: Path, tmp_path: Path) -> None:
    bids = tmp_path / "sub-01_T1w.nii.gz"
    bids.write_bytes(scan.read_bytes())
    outcome = done(TRANSLATE, [Location(bids)], tmp_path, stem="sub-01_T1w", id="sub-01/sub-01_T1w")
    names = outcome.result["outputs"]
    assert names["image"] == "sub-01_desc-synthetic_T2w.nii.gz"
    assert all(name.startswith("sub-01_desc-") for name in names.values())
    sidecar = json.loads((Path(outcome.draft) / "sub-01_desc-synthetic_T2w.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/sub-01_T1w.nii.gz"]


def test_a_dicom_case_gets_a_series(tmp_path: Path) -> None:
    cohort(tmp_path / "archive", 1)
    (image,) = discover(tmp_path / "archive", "dicom", bytes(32)).images
    outcome = done(
        {"name": "chain", "steps": [DENOISE, REFINE], "dicom": True}, image.sources, tmp_path,
        private=True, root=str(tmp_path / "archive"),
    )  # fmt: skip
    series = Path(outcome.draft) / "scan_superresolved_dicom"
    assert outcome.result["outputs"]["dicom"] == "scan_superresolved_dicom/*.dcm"
    back, made = io.read(series), image_of(outcome)
    expected = io.read(Path(outcome.draft) / outcome.result["outputs"]["image"])
    assert back.geometry.shape == made.shape == tuple(2 * n for n in SHAPE)
    # The series counts its rows and columns the way the scan does; the places are the same.
    corner = expected.geometry.to_voxel(back.geometry.to_world((0, 0, 0)))
    assert np.abs(corner - corner.round()).max() < 1e-2
    for path in Path(outcome.draft).rglob("*"):
        assert "DOE" not in path.name and (
            path.suffix == ".dcm" or not path.is_file() or b"Doe" not in path.read_bytes()
        )


def test_a_later_try_finds_the_same(scan: Path, tmp_path: Path) -> None:
    task = {"name": "chain", "steps": [DENOISE, TRANSLATE]}
    first, third = (done(task, [Location(scan)], tmp_path, attempt=n) for n in (1, 3))
    assert np.array_equal(np.asarray(image_of(first).dataobj), np.asarray(image_of(third).dataobj))
    assert not first.result["flags"] and "try 3" in third.result["flags"][0]


def test_headers_are_checked_before_the_run(scan: Path) -> None:
    (facts,) = io.describe(scan)
    for task, pattern in (
        ({"name": "super-resolve", "model": "cubic", "spacing_mm": 9.0}, "not finer"),
        ({"name": "super-resolve", "model": "cubic", "isotropic": True}, "equal sides already"),
    ):
        check = check_for(Pipeline.model_validate({"name": "p", "task": task}), 8.0)
        with pytest.raises(InputError, match=pattern):
            check(facts)
    fine = check_for(Pipeline.model_validate({"name": "p", "task": CUBIC}), 8.0)
    fine(facts)
    with pytest.raises(InputError, match="GB"):
        fine({**facts, "shape": (4000, 4000, 4000), "spacing_mm": (0.1, 0.1, 0.1)})
    with pytest.raises(InputError, match="frame"):
        fine({**facts, "frames": 3})


def test_what_a_chain_needs_is_that_of_its_greediest_step(scan: Path) -> None:
    packages = {name: load_package(name) for name in ("tiny-denoise", "tiny-sr")}
    facts = [io.describe(scan)[0]]

    def need(task: dict[str, Any]) -> float:
        return memory_needs_gb(task_of(task), packages, facts)[0]

    alone = [need(DENOISE), need(REFINE)]
    assert need({"name": "chain", "steps": [DENOISE, REFINE]}) == max(alone)
    # The later step works on the finer grid.
    assert need({"name": "chain", "steps": [REFINE, DENOISE]}) >= max(alone)
    seconds = seconds_per_case(task_of(REFINE), packages, facts)
    assert seconds is not None and seconds > 0
    no_metal = {"name": "inpaint", "model": "biharmonic", "remove_metal": 3000}
    assert seconds_per_case(task_of(no_metal), {}, facts) is None


def test_every_model_of_a_chain_is_named_once() -> None:
    steps = [task_of(step) for step in (FILL, DENOISE, {**FILL, "model": "biharmonic"}, CUBIC)]
    assert model_names(steps) == [  # type: ignore[arg-type]
        ("detect-anomalies", "tiny-baseline"), ("inpaint", "tiny-inpaint"),
        ("denoise", "tiny-denoise"), ("inpaint", "biharmonic"), ("super-resolve", "cubic"),
    ]  # fmt: skip
    pipeline = Pipeline.model_validate(
        {"name": "p", "task": {"name": "chain", "steps": [FILL, CUBIC]}}
    )
    assert packages_of(pipeline).keys() == {"tiny-baseline", "tiny-inpaint"}
