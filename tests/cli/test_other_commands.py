"""check, info, models, phantom, help and usage errors."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_packages import Cli

from medgen.cli.console import configure, progress_bar
from medgen.io import read, write_dicom_series

HEAVY = ("torch", "monai", "SimpleITK", "matplotlib", "lightning_fabric")


def test_light_commands_do_not_load_torch(scan: Path, shelf: Path, tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "archive" / "d", read(scan), seed="s")
    shutil.copy(scan, tmp_path / "archive")
    commands = [
        ["--help"], ["--version"], ["detect-anomalies", "--help"], ["info", "--json"],
        ["models", "list"], ["models", "show", "tiny-baseline"], ["check", str(scan)],
        ["check", str(tmp_path / "archive")], ["detect-anomalies", str(scan)],
        ["detect-anomalies", "-o", "x", "--frame", "one"],
        ["no-such-command"],
        ["detect-anomalies", str(scan), "-o", str(tmp_path / "x"), "-m", "no-such-model"],
        ["detect-anomalies", str(scan), "-o", str(tmp_path / "x"), "--device", "gpu"],
        ["detect-anomalies", str(scan), "-o", str(tmp_path / "x"), "-m", "tiny-restore",
         "--dry-run"],
        ["detect-anomalies", str(tmp_path / "absent"), "-o", str(tmp_path / "x"), "-m",
         "tiny-restore"],
    ]  # fmt: skip
    code = f"""
import contextlib, io, sys
from medgen.cli import app
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            app(words)
        except SystemExit:
            pass
    print(words, [name for name in {HEAVY!r} if name in sys.modules])
"""
    environment = {**os.environ, "MEDGEN_MODELS": str(shelf)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands)
    assert [line for line in lines if not line.endswith("[]")] == []


def test_help_is_quick() -> None:
    """Measured in processor seconds, which other programs on the machine do not lengthen."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "medgen", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.5


def test_every_command_has_help(cli: Cli) -> None:
    overview = cli("--help").stdout
    for command in ("detect-anomalies", "check", "info", "phantom", "models", "train"):
        assert command in overview
        help_ = cli(command, "--help")
        assert help_.exit_code == 0
        assert "Usage" in help_.stdout


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("detect", "detect-anomalies"), ("chek", "check"), ("fantom", "phantom"), ("model", "models")],
)
def test_unknown_commands_suggest_the_nearest(cli: Cli, typed: str, meant: str) -> None:
    result = cli(typed)
    assert result.exit_code == 2
    assert meant in result.stderr
    assert result.stdout == ""


def test_check_says_what_a_scan_is_and_who_takes_it(cli: Cli, scan: Path) -> None:
    result = cli("check", scan)
    assert result.exit_code == 0
    assert "24 x 28 x 20" in result.stdout
    found = json.loads(cli("check", scan, "--json").stdout)[0]
    image = found["images"][0]
    assert image["kind"] == "nifti"
    assert image["orientation"] == "RAS"
    verdicts = {model["name"]: model["takes"] for model in image["models"]}
    assert verdicts["tiny-baseline"]
    assert verdicts["tiny-restore"]


def test_check_says_why_not(cli: Cli, tmp_path: Path) -> None:
    affine = np.eye(4)
    flat = np.random.default_rng(0).random((32, 32, 1), np.float32)
    nib.save(nib.Nifti1Image(flat, affine), tmp_path / "flat.nii")
    found = json.loads(cli("check", tmp_path / "flat.nii", "--json").stdout)[0]["images"][0]
    verdicts = {model["name"]: model for model in found["models"]}
    assert verdicts["tiny-baseline"]["takes"]
    assert "takes 3-D" in verdicts["tiny-restore"]["why"]


def test_check_lists_series_and_goes_on_after_a_bad_path(
    cli: Cli, scan: Path, tmp_path: Path
) -> None:
    volume = read(scan)
    for number in (3, 4):
        write_dicom_series(tmp_path / "d" / str(number), volume, seed="s", series_number=number)
    result = cli("check", tmp_path / "absent", tmp_path / "d", "--json")
    assert result.exit_code == 2
    absent, folder = json.loads(result.stdout)
    assert not absent["ok"]
    assert {image["series_number"] for image in folder["images"]} == {"3", "4"}
    assert folder["summary"]["images"] == 2


def test_info_names_versions_and_models(cli: Cli) -> None:
    found = json.loads(cli("info", "--json").stdout)
    assert found["versions"]["numpy"] == np.__version__
    assert "tiny-restore" in found["models"]
    assert found["free_memory_gb"] > 0
    assert "tiny-restore" in cli("info").stdout


def test_models_list_show_verify(cli: Cli, shelf: Path) -> None:
    assert "bright is abnormal" in cli("models", "list").stdout
    listed = {entry["name"] for entry in json.loads(cli("models", "list", "--json").stdout)}
    assert {"tiny-baseline", "tiny-restore"} <= listed
    shown = json.loads(cli("models", "show", "tiny-baseline", "--json").stdout)
    assert shown["calibration"]["threshold"] == 0.97
    assert "false findings" in cli("models", "show", "tiny-baseline").stdout
    verified = cli("models", "verify", "tiny-baseline", shelf / "tiny-restore", "--json")
    assert verified.exit_code == 0
    assert all(entry["ok"] for entry in json.loads(verified.stdout))


def test_brackets_in_folders_are_no_markup(
    cli: Cli, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "[/x]" / "res[final]"
    shutil.copytree(shelf / "tiny-baseline", folder / "tiny-baseline")
    (folder / "broken").mkdir()
    (folder / "broken" / "medgen.json").write_text("[/red]")
    monkeypatch.setenv("MEDGEN_MODELS", str(folder))
    monkeypatch.setenv("COLUMNS", "900")
    shown = cli("models", "show", folder / "tiny-baseline")
    assert shown.exit_code == 0, shown.output
    assert str(folder / "tiny-baseline") in shown.stdout
    listed = cli("models", "list")
    assert listed.exit_code == 0, listed.output
    assert "res[final]" in listed.stdout
    assert str(folder) in cli("info").stdout


def test_shipped_models_are_intact(cli: Cli) -> None:
    result = cli("models", "verify", "intensity")
    assert result.exit_code == 0, result.output


def test_phantom_writes_a_scan_and_its_truth(cli: Cli, tmp_path: Path) -> None:
    words = ("--shape", "32x36x28", "--spacing", 5, "--contrast", "flair", "--seed", 4)
    result = cli("phantom", "-o", tmp_path / "p", *words)
    assert result.exit_code == 0, result.output
    image = nib.load(tmp_path / "p" / "phantom_FLAIR.nii.gz")
    lesion = np.asarray(nib.load(tmp_path / "p" / "phantom_desc-lesion_mask.nii.gz").dataobj) > 0
    assert image.shape == lesion.shape == (32, 36, 28)
    assert lesion.any()
    record = json.loads((tmp_path / "p" / "run.json").read_text())
    assert record["synthetic"] is True
    assert record["settings"]["seed"] == 4
    assert cli("phantom", "-o", tmp_path / "p", *words).exit_code == 2


def test_phantom_refuses_what_is_no_shape(cli: Cli, tmp_path: Path) -> None:
    for shape in ("banana", "10", "0x0x0"):
        result = cli("phantom", "-o", tmp_path / "p", "--shape", shape)
        assert result.exit_code == 2, result.output
    assert list(tmp_path.iterdir()) == []


def test_version_needs_no_command(cli: Cli) -> None:
    result = cli("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("medgen ")


def test_a_bar_gives_way_to_lines(monkeypatch) -> None:
    """A line said under a bar begins a line of its own, which was once the rest of the bar's."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    configure()
    with progress_bar("models") as progress:
        assert progress is not None
        progress(1, 2)
        logging.getLogger("medgen.test").info("a cell is done")
    cleared = "\r\x1b[2K"
    before, found, _ = terminal.getvalue().partition("a cell is done")
    assert found
    assert cleared in before[before.rindex("models") :]
