"""medgen train: a tiny run, its dry run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medgen.cli import app

RUN = """
name: tiny
method: pca
config: {spatial_dims: 2, components: 4, grid: 8}
data: {kind: phantoms, heads: 1, shape: [48, 56, 40], size: [32, 32], spacing_mm: 5.0}
steps: 3
batch_size: 4
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RUN)
    return path


def medgen(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_train_stop_and_resume(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, shown, _ = medgen(settings, "-o", out, "--max-minutes", 0, "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(shown)["step"] == 1
    code, shown, _ = medgen(settings, "-o", out, "--resume", "--set", "steps=4")
    assert code == 0
    assert "Finished at step 4" in shown
    assert (out / "weights.safetensors").is_file()


def test_a_dry_run_prints_every_setting_and_writes_nothing(settings: Path, tmp_path: Path) -> None:
    code, shown, _ = medgen(settings, "-o", tmp_path / "run", "--dry-run", "--set", "config.grid=9")
    assert code == 0
    values = json.loads(shown)
    assert values["config"]["grid"] == 9
    assert values["ema_decay"] == 0.999
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "step=3"], "Did you mean 'steps'"),
        (["--set", "method=pcaa"], "Did you mean 'pca'"),
        (["--resume"], "no checkpoint"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--device", "gpu"], "unknown device"),
        (["--set", "data.kind=label_maps"], "unknown key 'heads'"),
    ],
)
def test_bad_usage_is_explained(
    settings: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    code, _, errors = medgen(settings, "-o", tmp_path / "run", *words)
    assert code == 2
    assert message in " ".join(errors.split())
    assert not (tmp_path / "run").exists()
