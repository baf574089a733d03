"""Small cohorts, a small model, and the real command line in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import environment, words
from hostile_cohorts import bids_dataset, cohort, nifti_cohort
from tiny_packages import save_intensity

PIPELINE = """
name: tiny
description: Bright voxels of small heads
case: study
images:
  require:
    - {field: dims, any_of: [3], reason: it is not a volume}
  prefer:
    - {field: text, matches: flair, reason: FLAIR is preferred}
task: {name: detect-anomalies, model: tiny-baseline, report: false, dicom: [seg]}
timeout_minutes: 2
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_intensity(folder / "tiny-baseline")
    return folder


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "tiny.yaml"
    path.write_text(PIPELINE)
    return path


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same few heads as a DICOM archive, a BIDS data set and a folder of NIfTI."""
    root = tmp_path_factory.mktemp("archives")
    cohort(root / "dicom", 4)
    bids_dataset(root / "bids", 2, 1)
    nifti_cohort(root / "nifti", 3)
    return {kind: root / kind for kind in ("dicom", "bids", "nifti")}


@pytest.fixture(scope="session")
def medgen_batch(shelf: Path) -> Run:
    """Call with the words of a ``medgen batch`` command; gives returncode, stdout and stderr."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        # One worker: what is tested does not need more, and each has to load the libraries.
        one = ["--workers", "1"] if arguments[0] == "run" else []
        return subprocess.run(
            words(*arguments, *one), capture_output=True, text=True, timeout=170,
            env=environment(shelf), **options,
        )  # fmt: skip

    return run
