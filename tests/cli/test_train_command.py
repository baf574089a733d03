"""medgen train: a tiny run, its dry run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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


GAN = """
name: tiny
method: dcgan
config: {image_size: [16, 16], width: 4, latent: 4, conditions: 2, conditioning: projection}
data: {kind: images}
steps: 2
batch_size: 4
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cancer", "benign"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.add.outer(np.arange(16), np.arange(16) * number) + len(name)
            path = tmp_path / "images" / name / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "images"


def test_any_folder_of_images_with_one_command(tmp_path: Path, images: Path) -> None:
    (tmp_path / "gan.yaml").write_text(GAN)
    words = [tmp_path / "gan.yaml", "-o", tmp_path / "run", "--set", f"data.folder={images}"]
    code, shown, errors = medgen(*words, "--dry-run")
    assert code == 0, errors
    source = json.loads(shown)["source"]
    assert source["conditions"] == {"benign": 5, "cancer": 5}
    assert (source["images"], source["held_out_images"]) == (10, 2)
    assert "hashed_ids" not in source
    assert not (tmp_path / "run").exists()
    code, shown, errors = medgen(*words, "--device", "cpu")
    assert code == 0, errors
    assert "10 images of 5 groups to train on (benign 5, cancer 5), 2 of 1 held out" in errors
    assert "health/diversity" in shown
    assert (tmp_path / "run" / "images" / "step-0000002.png").is_file()


def test_a_dry_run_finds_what_training_would(tmp_path: Path, images: Path) -> None:
    (tmp_path / "gan.yaml").write_text(GAN)
    words = [tmp_path / "gan.yaml", "-o", tmp_path / "run", "--dry-run"]
    code, _, errors = medgen(*words)
    assert code == 2
    assert "data.folder is not set" in errors
    (images / "benign" / "3.png").write_bytes(b"no picture")
    code, _, errors = medgen(*words, "--set", f"data.folder={images}")
    assert code == 2
    assert "3.png is damaged" in errors.replace("\n", "")
    assert "Traceback" not in errors
