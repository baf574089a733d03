"""medgen train: a tiny run, its dry run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medgen.cli import app
from medgen.run_record import hash_file

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
    record = json.loads((out / "run.json").read_text())
    assert record["command"] == "train CONFIG -o OUT --set steps=... --resume"
    assert record["inputs"] == [{"name": "tiny.yaml", "files": 1, "sha256": hash_file(settings)}]
    hashes = {entry["name"]: entry["sha256"] for entry in record["outputs"]}
    assert hashes["weights.safetensors"] == hash_file(out / "weights.safetensors")
    assert "run.json" not in hashes
    assert (record["step"], record["complete"]) == (4, True)
    assert str(tmp_path) not in (out / "run.json").read_text()


def test_brackets_in_paths_are_no_markup(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "[/x]" / "res[final]"
    code, shown, errors = medgen(settings, "-o", out, "--device", "cpu")
    assert code == 0, errors
    assert str(out / "weights.safetensors") in shown
    assert str(out / "log.jsonl") in errors.replace("\n", "")


def test_a_folder_that_cannot_be_made_is_no_defect(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for words in ((), ("--overwrite",)):
        code, _, errors = medgen(settings, "-o", tmp_path / "file" / "x", *words)
        assert code == 2, errors
        assert "cannot write to" in errors
        assert "defect" not in errors
    assert (tmp_path / "file").read_text() == "mine"


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
