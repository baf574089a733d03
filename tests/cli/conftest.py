"""The real command line, run inside the test process, with two small models on the shelf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_packages import Cli, phantom, save_intensity, save_restore
from typer.testing import CliRunner

from medgen.cli import app
from medgen.io import write_nifti


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: `tiny-baseline` (2-D and 3-D, calibrated) and `tiny-restore` (3-D only)."""
    folder = tmp_path_factory.mktemp("shelf")
    save_intensity(folder / "tiny-baseline")
    save_restore(folder / "tiny-restore")
    return folder


@pytest.fixture
def cli(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call with the words of a command line; gives exit_code, stdout and stderr."""
    monkeypatch.setenv("MEDGEN_MODELS", str(shelf))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLAIR-like head with a bright lesion, as NIfTI."""
    image = phantom().image
    path = tmp_path_factory.mktemp("scan") / "sub-01_FLAIR.nii.gz"
    return write_nifti(path, image.voxels[0], image.geometry)
