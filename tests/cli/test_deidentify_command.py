"""``medgen deidentify`` as a person meets it: help, results, refusals, and no name anywhere."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_packages import Cli

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from deidentify_cases import encoded, image, planted

SECRETS = re.compile(r"Doe|Jane|SEC\d|SECRET|1\.2\.3")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two good objects, one with text in the pixels, one damaged, one that is no DICOM."""
    folder = tmp_path / "Doe^Jane"
    folder.mkdir()
    (folder / "Doe 1").write_bytes(encoded(image(instance=2)))
    (folder / "Doe 2").write_bytes(planted().data)
    (folder / "Doe 3").write_bytes(encoded(image(instance=3, BurnedInAnnotation="YES")))
    (folder / "notes.txt").write_text("Doe")
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "one.dcm"
    path.write_bytes(encoded(image(instance=9)))
    return path


def everything(result: Any, folder: Path) -> str:
    """All that was printed and all reports."""
    reports = [path.read_text() for path in folder.glob("*.*") if path.is_file()]
    return "\n".join([result.stdout, result.stderr, *reports])


def test_help_is_complete(cli: Cli) -> None:
    result = cli("deidentify", "--help")
    assert result.exit_code == 0
    for word in ("--key-file", "--new-key", "--shift-dates", "--keep-dates", "--keep-uids",
                 "--keep-device", "--keep-institution", "--keep-patient-characteristics",
                 "--clean-descriptors", "--keep-safe-private", "--allow-burned-in", "Examples",
                 "--dry-run", "PS3.15"):  # fmt: skip
        assert word in result.stdout


def test_an_archive(cli: Cli, archive: Path, tmp_path: Path) -> None:
    result = cli("deidentify", archive, "-o", tmp_path / "out", "-v")
    assert result.exit_code == 0, result.stderr
    assert "2 written" in result.stdout
    assert "burned-in annotation: the object says so" in result.stdout
    assert "1 files are not DICOM" in result.stdout
    assert not SECRETS.search(everything(result, tmp_path / "out"))


def test_json_and_keys(cli: Cli, one: Path, tmp_path: Path) -> None:
    key = tmp_path / "project.key"
    words = ("deidentify", one, "--key-file", key, "--json", "-q")
    first = cli(*words, "-o", tmp_path / "a", "--new-key")
    second = cli(*words, "-o", tmp_path / "b")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert json.loads(first.stdout)["series"] == json.loads(second.stdout)["series"]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_text().strip()
    for result, name in ((first, "a"), (second, "b")):
        assert secret not in everything(result, tmp_path / name)
        assert result.stderr == ""


def test_a_dry_run_says_what_would_be_done(cli: Cli, archive: Path, tmp_path: Path) -> None:
    key = tmp_path / "k"
    result = cli("deidentify", archive, "-o", tmp_path / "out", "--dry-run", "--key-file", key,
                 "--new-key")  # fmt: skip
    assert result.exit_code == 0
    assert "2 would be written" in result.stdout
    assert not (tmp_path / "out").exists()
    assert not key.exists()


def test_a_damaged_object_ends_with_three(cli: Cli, archive: Path, tmp_path: Path) -> None:
    (archive / "cut").write_bytes(encoded(image(instance=7))[:900])
    result = cli("deidentify", archive, "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert "1 could not be treated" in result.stdout
    assert "2 written" in result.stdout
    assert not SECRETS.search(everything(result, tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Doe-none", "-o", "out"], "does not exist"),
        (["Doe^Jane", "-o", "Doe^Jane/out"], "inside the input"),
        (["Doe^Jane", "-o", "full"], "not empty"),
        (["text.txt", "-o", "out"], "holds no DICOM"),
        (["Doe^Jane", "-o", "out", "--shift-dates", "--keep-dates"], "choose one"),
        (["Doe^Jane", "-o", "out", "--new-key"], "needs --key-file"),
        (["Doe^Jane", "-o", "out", "--key-file", "out/k", "--new-key"], "handed on"),
        (["Doe^Jane", "-o", "out", "--key-file", "none"], "cannot be read"),
        (["Doe^Jane", "-o", "out", "--key-file", "open.key"], "read by others"),
        (["Doe^Jane", "-o", "out", "--key-file", "text.txt"], "does not hold a key"),
    ],
)
def test_bad_input_ends_with_two_and_nothing_written(
    words: list[str], message: str, cli: Cli, archive: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "text.txt").write_text("Doe")
    (tmp_path / "text.txt").chmod(0o600)
    (tmp_path / "open.key").write_text("00" * 32)
    (tmp_path / "open.key").chmod(0o644)
    before = sorted(tmp_path.rglob("*"))
    result = cli("deidentify", *words)
    assert result.exit_code == 2, result.stdout
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not SECRETS.search(result.stdout + result.stderr)
    assert sorted(tmp_path.rglob("*")) == before
