"""A chain over a whole cohort, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest
from tiny_packages import save_restorer

pytestmark = pytest.mark.slow
PIPELINE = """
name: finer
description: Denoised and refined heads
task:
  name: chain
  steps:
    - {name: denoise, model: tiny-denoise}
    - {name: super-resolve, model: tiny-sr, scale: 2}
  report: false
  dicom: true
timeout_minutes: 5
"""


@pytest.fixture(scope="module")
def finer(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_restorer(shelf / "tiny-denoise", "denoise")
    save_restorer(shelf / "tiny-sr", "super-resolve")
    path = tmp_path_factory.mktemp("pipelines") / "finer.yaml"
    path.write_text(PIPELINE)
    return path


def test_every_case_is_refined_and_told(medgen_batch, finer, archives, tmp_path) -> None:
    out = tmp_path / "out"
    finished = medgen_batch("run", finer, archives["dicom"], "-o", out)
    assert finished.returncode == 0, finished.stderr
    check(out, cases=4)
    # A slice that is gone is made again, with its case and no other.
    next(iter(sorted(out.rglob("*_dicom/*.dcm")))).unlink()
    mended = medgen_batch("run", finer, archives["dicom"], "-o", out)
    assert mended.returncode == 0 and "1 case to do" in mended.stderr
    check(out, cases=4)


def check(out: Path, cases: int) -> None:
    """All that a finished run must hold."""
    summary = json.loads((out / "summary.json").read_text())
    assert [case["state"] for case in summary["cases"]] == ["done"] * cases
    for case in summary["cases"]:
        folder = out / case["folder"]
        assert case["values"]["voxels"] == "48 x 56 x 40"
        assert case["values"]["inconsistency_max"] >= 0
        assert (out / case["thumbnail"]).exists()
        assert nib.load(folder / "scan_desc-superresolved.nii.gz").shape == (48, 56, 40)
        assert len(list(folder.glob("scan_superresolved_dicom/*.dcm"))) == 40
    record = json.loads((out / "run.json").read_text())
    assert [model["name"] for model in record["models"]] == ["tiny-denoise", "tiny-sr"]
