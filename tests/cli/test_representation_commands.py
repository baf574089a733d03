"""medgen pretrain, probe and latent: tiny runs, what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pretraining_cases import PATTERN, bars
from typer.testing import CliRunner

from medgen.cli import app

TINY = ("--set", "config.features=[8, 8]", "--steps", 2, "--batch-size", 4)


def medgen(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bars(tmp_path_factory.mktemp("bars") / "images", 24)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "vae"
    code, shown, errors = medgen(
        "pretrain", images, "-o", out, "--method", "vae", "--group-pattern", PATTERN,
        "--set", "config.latent_channels=3", *TINY, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, errors
    assert "medgen probe" in shown
    return out


def test_pretraining_leaves_a_run_and_its_record(run: Path, images: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["command"].startswith("pretrain DATA -o OUT --method vae --seed 0")
    assert str(images) not in (run / "run.json").read_text()
    config = json.loads((run / "training.json").read_text())["config"]
    assert config["config"]["image_size"] == [32, 32]
    assert config["data"]["validation_fraction"] == 0.25


def test_a_dry_run_of_every_method_fits_the_images(images: Path, tmp_path: Path) -> None:
    for method in ("mae", "dae", "contrastive"):
        code, shown, errors = medgen(
            "pretrain", images, "-o", tmp_path / "run", "--method", method, "--dry-run",
            "--group-pattern", PATTERN,
        )  # fmt: skip
        assert code == 0, errors
        source = json.loads(shown)["source"]
        assert source["images"] + source["held_out_images"] == 24
    assert not (tmp_path / "run").exists()


def test_a_configuration_says_everything(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\nmethod: mae\nconfig: {{features: [8, 8]}}\nsteps: 1\nbatch_size: 4\n"
        f"data: {{kind: normals, anomalies: {{}}, folder: {images}, group_pattern: '{PATTERN}'}}\n"
    )
    code, _, errors = medgen("pretrain", file, "-o", tmp_path / "run", "--device", "cpu")
    assert code == 0, errors
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "may"), "--method must be one of"),
        (("--size", 40), "multiple of 16"),
        (("--method", "contrastive", "--spatial-dims", 3), "not volumes"),
        (("--set", "colour=1"), "unknown key"),
        (("--conditions", "lying"), "NAME=SUBFOLDER"),
    ],
)
def test_pretraining_refuses(
    words: tuple[object, ...], message: str, images: Path, tmp_path: Path
) -> None:
    code, _, errors = medgen("pretrain", images, "-o", tmp_path / "run", *words)
    assert code == 2
    assert message in errors.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    code, _, errors = medgen("pretrain", tmp_path / "none", "-o", tmp_path / "run")
    assert code == 2
    assert "there is no folder" in errors


def test_probe_writes_tables_and_curves(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    words = ("probe", run, images, "-o", out, "--fractions", "0.2,1", "--seeds", 2)
    code, shown, errors = medgen(*words, "--device", "cpu")
    assert code == 0, errors
    assert "Pre-trained against random weights" in shown
    assert (out / "table.md").read_text() == shown
    lines = (out / "probe.tsv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2 * 2  # pixels, random and pre-trained; fractions; seeds
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "probe.json").read_text())["groups"]["held_out"] > 0
    assert str(tmp_path) not in (out / "run.json").read_text()
    code, _, errors = medgen(*words)
    assert code == 2
    assert "already holds" in errors


def test_probe_refuses_patients_that_were_trained_on(
    run: Path, images: Path, tmp_path: Path
) -> None:
    code, _, errors = medgen("probe", run, images, "-o", tmp_path / "x", "--held-out", 0.7)
    assert code == 2
    assert "were trained on by vae" in errors
    assert not (tmp_path / "x").exists()


def test_probe_refuses_what_are_no_fractions(run: Path, images: Path, tmp_path: Path) -> None:
    code, _, errors = medgen("probe", run, images, "-o", tmp_path / "x", "--fractions", "1;2")
    assert code == 2
    assert "--fractions must be numbers" in errors


def test_latent_writes_pictures_page_and_codes(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "latent"
    code, shown, errors = medgen(
        "latent", run, images, "-o", out, "--grid", 3, "--steps", 4, "--device", "cpu",
        "--between", "l000_0.png", "s003_1.png",
    )  # fmt: skip
    assert code == 0, errors
    assert "24 images (lying 12, standing 12)" in shown
    assert "principal components" in shown
    for name in ("scatter.png", "grid.png", "interpolation.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "latent.html").read_text()
    assert page.count("<circle") == 24
    assert "http" not in page.replace("http-equiv", "")
    header, *rows = (out / "codes.tsv").read_text().splitlines()
    assert header.split("\t") == ["file", "label", "x", "y", "z0", "z1", "z2"]
    assert len(rows) == 24
    assert str(tmp_path) not in (out / "run.json").read_text()


def test_latent_names_what_it_cannot_show(run: Path, images: Path, tmp_path: Path) -> None:
    code, _, errors = medgen("latent", "colon-histology", images, "-o", tmp_path / "x")
    assert code == 2
    assert "makes images from noise" in errors
    code, _, errors = medgen(
        "latent", run, images, "-o", tmp_path / "x", "--between", "no.png", "l000_0.png"
    )
    assert code == 2
    assert "no image is called 'no.png'" in errors
    assert not (tmp_path / "x").exists()


def test_brackets_in_names_are_no_markup(run: Path, tmp_path: Path) -> None:
    images = bars(tmp_path / "[/x]" / "in", 8)
    code, _, errors = medgen(
        "latent", run, images, "-o", tmp_path / "[red]", "--grid", 2, "--device", "cpu"
    )
    assert code == 0, errors
