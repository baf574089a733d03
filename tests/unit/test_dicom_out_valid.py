"""Every kind of object from every kind of source satisfies a validator that we did not write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_out_cases import FLAT, GRIDS, RESAMPLED, TOOLS, errors, scan, write_all

pytestmark = pytest.mark.skipif(
    not (TOOLS / "dciodvfy").exists(), reason="dicom3tools is not installed"
)
CASES = GRIDS | RESAMPLED | FLAT


@pytest.mark.parametrize("kind", CASES)
def test_no_errors(kind: str, tmp_path: Path) -> None:
    volume = scan(kind, tmp_path, CASES[kind])
    found = {name: errors(path) for name, path in write_all(volume, tmp_path / "out").items()}
    assert found == {name: [] for name in found}


def test_no_finding_is_a_valid_result(tmp_path: Path) -> None:
    volume = scan("oblique", tmp_path)
    nothing = np.zeros(volume.geometry.shape)
    paths = write_all(volume, tmp_path / "out", nothing > 0, nothing)
    for path in (paths["seg"], paths["pmap"]):
        assert errors(path) == []
        assert pydicom.dcmread(path).NumberOfFrames == volume.geometry.shape[2]


def test_the_validator_finds_faults(tmp_path: Path) -> None:
    path = write_all(scan("oblique", tmp_path), tmp_path / "out")["seg"]
    dataset = pydicom.dcmread(path)
    del dataset.SegmentSequence
    dataset.save_as(path)
    assert errors(path)
